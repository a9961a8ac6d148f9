"""Plane profiles: an encoder with a weight per feature, for the audit of a proxy task.

What a linear model can read off an input's borders, seams and resolution: per axis, the mean of
every plane, the spread within it, and the difference from the plane before. On noise these carry
nothing about a target; whatever accuracy a linear head reaches on them there is a shortcut.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl3d.models.encoders import OWN_SETTINGS, Kind
from ssl3d.models.features import Features


class Profiles(nn.Module):
    """[B, *S, C] -> one level [B, 1, ..., 1, F] of features, F = C * (sum of 3 S - 1)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Features:
        x = x.astype(jnp.float32)
        parts = []
        for axis in range(1, x.ndim - 1):
            within = tuple(other for other in range(1, x.ndim - 1) if other != axis)
            steps = jnp.abs(jnp.diff(x, axis=axis))
            parts += [x.mean(within), x.std(within), steps.mean(within)]
        flat = jnp.concatenate([part.reshape(len(x), -1) for part in parts], axis=-1)
        # A linear model learns soonest from features of unit scale; each input is its own scale,
        # as nothing may be shared between the examples of a batch.
        flat -= flat.mean(-1, keepdims=True)
        flat *= jax.lax.rsqrt(jnp.square(flat).mean(-1, keepdims=True) + 1e-6)
        flat *= self.param("weight", nn.initializers.ones, flat.shape[-1:])
        return Features((flat.reshape(len(x), *(1,) * (x.ndim - 2), -1),))


def build(**_: Any) -> nn.Module:
    """The module; it has none of the settings of an encoder that learns."""
    return Profiles()


ENCODER = Kind(build, settings=OWN_SETTINGS)
