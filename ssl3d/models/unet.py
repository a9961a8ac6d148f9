"""The descending half of a U-Net, with plain or residual levels.

Plain levels are those of the paper's released code: two convolutions, then max pooling.
Residual levels are the paper's (Taleb et al. 2020, appendix A), with learned downsampling.
Both double the channels from level to level.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ssl3d.errors import UserError
from ssl3d.models import layers, remat
from ssl3d.models.features import DTYPES, Features


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU; or convolution, ReLU, norm with `activation_first`."""

    channels: int
    norm: str
    bias: bool
    activation_first: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *S {self.channels}"]:
        x = layers.Conv(self.channels, bias=self.bias, dtype=self.dtype, name="conv")(x)
        norm = layers.Norm(self.norm, dtype=self.dtype, name="norm")
        return norm(nn.relu(x), train) if self.activation_first else nn.relu(norm(x, train))


class PlainLevel(nn.Module):
    """Two convolutions with dropout in between."""

    channels: int
    norm: str
    activation_first: bool
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *S {self.channels}"]:
        first, second = (
            ConvNorm(self.channels, self.norm, True, self.activation_first, self.dtype, name=name)
            for name in ("first", "second")
        )
        x = first(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return second(x, train)


class ResidualLevel(nn.Module):
    """Two convolutions with a shortcut.

    The shortcut has no norm, so absolute intensities reach the bottleneck.
    """

    channels: int
    norm: str
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *S {self.channels}"]:
        first = ConvNorm(self.channels, self.norm, False, False, self.dtype, name="first")
        y = first(x, train)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = layers.Conv(self.channels, bias=False, dtype=self.dtype, name="second_conv")(y)
        y = layers.Norm(self.norm, dtype=self.dtype, name="second_norm")(y, train)
        if x.shape[-1] != self.channels:
            shortcut = layers.Conv(
                self.channels, kernel=1, bias=False, dtype=self.dtype, name="shortcut"
            )
            x = shortcut(x)
        return nn.relu(x + y)


class UNetEncoder(nn.Module):
    """An encoder of `depth` levels.

    Attributes:
      width: channels of the first level.
      depth: levels, including the bottleneck.
      final_pool: "max" pools the bottleneck once more, as the released code does.
      remat: see `ssl3d.models.remat`.
    """

    residual: bool
    width: int
    depth: int
    norm: str = "group"
    activation_first: bool = False
    dropout: float = 0.0
    final_pool: str = "none"
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"], train: bool = False) -> Features:
        dtype = DTYPES[self.dtype]
        levels = []
        kind = remat.level(ResidualLevel if self.residual else PlainLevel, self.remat)
        for i in range(self.depth):
            channels, name = self.width * 2**i, f"level_{i}"
            if self.residual:
                if i > 0:
                    x = layers.Downsample(channels, dtype=dtype, name=f"down_{i}")(x)
                level = kind(channels, self.norm, self.dropout, dtype, name=name)
            else:
                if i > 0:
                    x = layers.max_pool(x)
                order = self.activation_first
                level = kind(channels, self.norm, order, self.dropout, dtype, name=name)
            x = level(x, train)
            levels.append(x)
        if self.final_pool == "max":
            levels[-1] = layers.max_pool(x)
        return Features(tuple(levels))


residual = functools.partial(UNetEncoder, residual=True)


def plain(**settings: Any) -> UNetEncoder:
    """The encoder with plain levels. Raises `UserError` for settings that cannot learn."""
    encoder = UNetEncoder(residual=False, **settings)
    if encoder.activation_first and encoder.norm == "instance":
        # The mean over a map that was just normalised is the norm's bias, whatever the input.
        raise UserError(
            "encoder.norm=instance after the activation gives every input the same pooled "
            "features; set encoder.activation_first=False or encoder.norm=group"
        )
    return encoder
