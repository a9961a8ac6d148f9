"""Encoders: [B, *S, C] -> features at every resolution, for any rank and any size.

`unet` is the original code's: two convolutions per level, then a maximum. `resunet` is the
paper's: residual levels, with learned downsampling. Both double the channels with each level.
`densenet121` is the paper's for pictures (`ssl3d.models.densenet`). All halve the size with each
level; odd sizes are rounded up, so level i of an axis of n voxels has ceil(n / 2^i), and the first
level has exactly the input's size.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl3d.errors import UserError
from ssl3d.models import layers

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Features(NamedTuple):
    """What an encoder returns; heads pool the last level, decoders use all of them."""

    levels: tuple[jax.Array, ...]
    """[B, *S, C] at full resolution first, the bottleneck last."""


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU; or convolution, ReLU, norm where the activation comes first."""

    channels: int
    norm: str
    bias: bool
    activation_first: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.Conv(self.channels, bias=self.bias, dtype=self.dtype, name="conv")(x)
        norm = layers.Norm(self.norm, dtype=self.dtype, name="norm")
        return norm(nn.relu(x), train) if self.activation_first else nn.relu(norm(x, train))


class PlainLevel(nn.Module):
    """Two convolutions, with dropout between them: [B, *S, C] -> [B, *S, channels]."""

    channels: int
    norm: str
    activation_first: bool
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        first, second = (
            ConvNorm(self.channels, self.norm, True, self.activation_first, self.dtype, name=name)
            for name in ("first", "second")
        )
        x = first(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return second(x, train)


class ResidualLevel(nn.Module):
    """Two convolutions around which the input is added: [B, *S, C] -> [B, *S, channels].

    The shortcut has no norm of its own, so absolute intensities reach the bottleneck.
    """

    channels: int
    norm: str
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
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
    """The descending half of a U-Net with plain or residual levels.

    `depth` counts the levels including the bottleneck, `width` is the first level's channels.
    With `final_pool="max"` the bottleneck is pooled once more, as in the original code.
    """

    residual: bool
    width: int
    depth: int
    norm: str = "group"
    activation_first: bool = False
    dropout: float = 0.0
    final_pool: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Features:
        dtype = DTYPES[self.dtype]
        levels = []
        for i in range(self.depth):
            channels, name = self.width * 2**i, f"level_{i}"
            if self.residual:
                if i > 0:
                    x = layers.Downsample(channels, dtype=dtype, name=f"down_{i}")(x)
                level = ResidualLevel(channels, self.norm, self.dropout, dtype, name=name)
            else:
                if i > 0:
                    x = layers.max_pool(x)
                level = PlainLevel(
                    channels, self.norm, self.activation_first, self.dropout, dtype, name=name
                )
            x = level(x, train)
            levels.append(x)
        if self.final_pool == "max":
            levels[-1] = layers.max_pool(x)
        return Features(tuple(levels))


KINDS = ("unet", "resunet", "densenet121")
KEYS = ("kind", "width", "depth", "norm", "activation_first", "dropout", "final_pool", "dtype")


def build(config: Mapping[str, Any], size: Sequence[int] = ()) -> nn.Module:
    """The encoder that `config` (a dict or ConfigDict) describes.

    Keys: kind "unet" | "resunet" | "densenet121"; width, depth; norm "group" | "instance" |
    "batch"; activation_first (unet only); dropout; final_pool "none" | "max" (not densenet121);
    dtype "float32" | "bfloat16". With `size` (*S of its inputs, in voxels) the depth is checked
    against it.

    Raises:
        UserError: an unknown key, a value outside these, or a combination that cannot learn.
    """
    fields = {key: config[key] for key in config}
    for key in fields:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean encoder.{near[0]}?" if near else f"choose of {', '.join(KEYS)}"
            raise UserError(f"encoder.{key} is not a setting of the encoder; {hint}")
    kind = fields.pop("kind", "resunet")
    _one_of("kind", kind, KINDS)
    for key in ("width", "depth"):
        value = fields.get(key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"encoder.{key} is {value!r}; it must be a whole number from 1")
    if kind == "densenet121":
        from ssl3d.models import densenet  # not above: it is built on this module

        encoder = densenet.build(fields)
    else:
        encoder = _unet(kind, fields)
    _one_of("norm", encoder.norm, layers.NORMS)
    _one_of("dtype", encoder.dtype, tuple(DTYPES))
    if not isinstance(encoder.dropout, (int, float)) or not 0 <= encoder.dropout < 1:
        raise UserError(f"encoder.dropout is {encoder.dropout!r}; it must be in [0, 1)")
    if size and smallest_norm(config, size) < 2:
        raise UserError(
            f"encoder.depth is {encoder.depth}: of {tuple(size)} voxels one is left, and a "
            "norm over one voxel answers the same to everything; use fewer levels or larger inputs"
        )
    return encoder


def _unet(kind: str, fields: Mapping[str, Any]) -> UNetEncoder:
    encoder = UNetEncoder(residual=kind == "resunet", **fields)
    _one_of("final_pool", encoder.final_pool, ("none", "max"))
    if encoder.activation_first and encoder.residual:
        raise UserError("encoder.activation_first is for encoder.kind=unet only; set it to False")
    if encoder.activation_first and encoder.norm == "instance":
        # The mean over a map that was just normalised is the norm's bias, whatever the input.
        raise UserError(
            "encoder.norm=instance after the activation gives every input the same pooled "
            "features; set encoder.activation_first=False or encoder.norm=group"
        )
    return encoder


def _one_of(key: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"encoder.{key} is {value!r}; choose one of {', '.join(choices)}")


def smallest_norm(config: Mapping[str, Any], size: Sequence[int]) -> int:
    """The number of voxels per channel that the deepest norm sees for an input of `size` (*S).

    A norm over one voxel outputs a constant; presets keep this at 8 or more.
    """
    # The levels that a DenseNet's depth counts begin behind the stem, which has halved the size.
    halvings = config["depth"] - (config.get("kind") != "densenet121")
    return math.prod(-(-n // 2**halvings) for n in size)
