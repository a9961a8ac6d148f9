"""Heads over pooled features, independent of the input's size and rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32
from ml_collections import ConfigDict

from ssl3d.models import layers
from ssl3d.models.features import Features


def pooled(features: Features, how: str = "mean") -> Float32[Array, "B E"]:
    """Global mean or max pooling of the bottleneck.

    Raises ValueError unless `how` is "mean" or "max".
    """
    bottleneck = features.levels[-1].astype(jnp.float32)
    axes = tuple(range(1, bottleneck.ndim - 1))
    if how == "mean":
        return bottleneck.mean(axes)
    if how == "max":
        voxels = bottleneck.reshape(bottleneck.shape[0], -1, bottleneck.shape[-1])
        # By index and not by value, for the reason given at `layers._block_max`.
        return jnp.take_along_axis(voxels, voxels.argmax(1, keepdims=True), axis=1)[:, 0]
    raise ValueError(f"pooling {how!r}; choose mean or max")


def encode_patches(
    encoder: nn.Module, patches: Float[Array, "B N *P C"], how: str, train: bool
) -> Float32[Array, "B N E"]:
    """Encodes each of N patches per example once."""
    batch, count = patches.shape[:2]
    features = pooled(encoder(patches.reshape(-1, *patches.shape[2:]), train), how)
    return features.reshape(batch, count, -1)


class MLP(nn.Module):
    """A multilayer perceptron with ReLU, in float32.

    Batch norm and dropout, after each ReLU, are those of the released code's heads.
    """

    hidden: tuple[int, ...]
    out: int
    batch_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B E"], train: bool = False
    ) -> Float32[Array, "*B {self.out}"]:
        x = x.astype(jnp.float32)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
            if self.batch_norm:
                x = layers.Norm("batch")(x, train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.out)(x)


def build(config: Mapping[str, Any] | ConfigDict, out: int) -> MLP:
    """The head of `config.head` (hidden, batch_norm, dropout) with `out` outputs."""
    return MLP(tuple(config["hidden"]), out, config["batch_norm"], config["dropout"])
