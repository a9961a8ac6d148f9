"""Self-supervised pretraining on 3D medical images in JAX."""

import os

# Hints to XLA's own developers ("[Perf]: MatMul reference implementation") are no news to users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
