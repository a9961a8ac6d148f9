"""Procedural anatomy: subjects drawn from nothing but a random generator.

`fields` holds the primitives (coordinates, smooth noise, signed distances, partial volume, bias
and noise); `brain`, `abdomen` and `fundus` each put one kind of image together from them, with the
help of the other modules here.
"""
