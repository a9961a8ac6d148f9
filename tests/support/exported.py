"""Encoders to export, with weights that tell every array and every axis apart."""

import jax
import numpy as np
from flax import traverse_util

from ssl3d.models import encoders, export

RESENC = {"kind": "resenc", "width": 4, "depth": 3, "norm": "instance", "blocks": (1, 2, 1)}


def random_leaves(module, *inputs, seed=0):
    """Random values everywhere, also where initial ones are zeros or ones."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)
    flat = traverse_util.flatten_dict(shapes)
    for path, leaf in flat.items():
        values = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        if leaf.ndim == 1:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        flat[path] = values.astype(leaf.dtype)
    return traverse_util.unflatten_dict(flat)


def write_encoder(folder, settings, rank, channels=2):
    """The encoder's folder of a run; its path."""
    encoder = encoders.build(settings)
    image = jax.ShapeDtypeStruct((1, *(16,) * rank, channels), np.float32)
    about = {
        "encoder": dict(settings),
        "rank": rank,
        "channels": channels,
        "modalities": [f"T{number}" for number in range(channels)],
        "task": "rpl",
        "dataset": "phantom brain",
        "steps": 30,
    }
    export.save_encoder(folder, random_leaves(encoder, image), about)
    return folder
