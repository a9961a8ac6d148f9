"""Self-supervised pretraining on 3D medical images in JAX."""

__version__ = "0.1.0"
