"""Weights of networks and encoders that were not trained."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ssl3d.models import encoders, export

ENCODER = {"kind": "resunet", "width": 4, "depth": 3, "norm": "group"}


def random_variables(module, *inputs, seed=0):
    """Variables distributed as at initialisation (He); NumPy is faster than to compile that."""
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    for path, leaf in flat.items():
        if leaf.ndim > 1:
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            flat[path] = rng.normal(0, scale, leaf.shape).astype(leaf.dtype)
        else:
            flat[path] = np.full(leaf.shape, float(path[-1] in ("scale", "var")), leaf.dtype)
    return traverse_util.unflatten_dict(flat)


def write_encoder(folder, rank, channels, settings=ENCODER, seed=5):
    """The folder of a pretraining run with a random encoder."""
    encoder = encoders.build(settings)
    variables = random_variables(encoder, jnp.zeros((1, *(16,) * rank, channels)), seed=seed)
    about = {"encoder": settings, "rank": rank, "channels": channels}
    export.save_encoder(folder / "encoder", variables, about)
    return folder
