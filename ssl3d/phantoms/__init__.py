"""Synthetic subjects, generated from procedural anatomy and a random generator.

`fields` provides the primitives (coordinates, smooth noise, signed distances, partial volume, bias
field, noise); `brain`, `abdomen` and `fundus` combine them into one kind of image each.
"""
