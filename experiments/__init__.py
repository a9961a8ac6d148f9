"""The paper's studies, one command each: methods x amounts of labels x repetitions x modes.

Import them as `ssl3d.experiments`, which a checkout and an installed package both have.
"""
