"""The models that a downstream run keeps; the options of commands name them, without JAX."""

KINDS = ("best", "last")  # by validation score; at the end of the run
