"""Pretrained encoders, without the pretraining."""

import jax
import jax.numpy as jnp

from ssl3d.models import encoders, export

ENCODER = {"kind": "resunet", "width": 4, "depth": 3, "norm": "group"}


def write_encoder(folder, rank, channels, seed=5):
    """The folder of a pretraining run with a random encoder."""
    encoder = encoders.build(ENCODER)
    variables = jax.jit(encoder.init)(jax.random.key(seed), jnp.zeros((1, *(16,) * rank, channels)))
    export.save_encoder(
        folder / "encoder",
        jax.device_get(variables),
        {"encoder": ENCODER, "rank": rank, "channels": channels},
    )
    return folder
