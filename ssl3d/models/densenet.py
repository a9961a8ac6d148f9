"""DenseNet-121 (Huang et al., CVPR 2017): the paper's 2D encoder, and the same net in 3D.

As Keras has it without its top: a convolution 7 and a maximum 3, both of stride 2, then four
dense blocks, each of whose layers adds `width` channels to what all layers before it found.
Between two blocks half of the channels go on, at half the size. Norm and ReLU precede every
convolution. Odd sizes are rounded up at every halving, where Keras rounds down in between.

The forms are chosen as in `layers`: no strided convolution, no `reduce_window`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl3d.errors import UserError
from ssl3d.models import layers
from ssl3d.models.encoders import DTYPES, Features

BLOCKS = (6, 12, 24, 16)  # layers of each dense block
_STEM = 2  # channels of the stem, in units of the growth
_BOTTLENECK = 4  # channels between the two convolutions of a layer, in units of the growth


def _pairs(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The even and the odd places along `axis`, whose length is even: each of half the length."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return even, odd


def _pad(x: jax.Array, axis: int, before: int, after: int, **how: Any) -> jax.Array:
    return jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)], **how)


def mean_pool(x: jax.Array) -> jax.Array:
    """Mean over blocks of 2^rank: [B, *S, C] -> [B, *ceil(S/2), C].

    The last block of an odd axis holds only the voxels there are.
    """
    for axis in range(1, x.ndim - 1):
        if x.shape[axis] % 2:
            x = _pad(x, axis, 0, 1, mode="edge")  # the mean of a voxel and itself
        even, odd = _pairs(x, axis)
        x = (even + odd) / 2
    return x


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 3^rank voxels around every second one: [B, *S, C] -> [B, *ceil(S/2), C].

    Of equal voxels the first gets the gradient.
    """
    # The last axis first: of equal voxels the first in memory then wins, as in the library's.
    for axis in reversed(range(1, x.ndim - 1)):
        if x.shape[axis] % 2:
            x = _pad(x, axis, 0, 1, constant_values=-jnp.inf)
        centre, after = _pairs(x, axis)
        before = _pad(after, axis, 1, 0, constant_values=-jnp.inf)
        x = _larger(_larger(jax.lax.slice_in_dim(before, 0, -1, axis=axis), centre), after)
    return x


def _larger(first: jax.Array, second: jax.Array) -> jax.Array:
    """The maximum, whose gradient goes to exactly one of the two, whatever is computed anew.

    That of `jnp.maximum` is lost or NaN then: see `layers._block_max`.
    """
    return jnp.where(second > first, second, first)


class Stem(nn.Module):
    """Convolution with kernel 7^rank and stride 2: [B, *S, C] -> [B, *ceil(S/2), channels]."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rank, halved = x.ndim - 2, tuple(-(-n // 2) for n in x.shape[1:-1])
        shape = (*(7,) * rank, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        # One voxel to the front, and the 7 taps around voxel 2i, with one of zero, are the four
        # whole blocks from i - 1 on: a convolution of stride 1 over blocks.
        blocks = layers.space_to_depth(
            jnp.pad(x.astype(self.dtype), [(0, 0), *[(1, 0)] * rank, (0, 0)])
        )
        taps = layers.space_to_depth(kernel.astype(self.dtype).reshape(1, *(7,) * rank, -1))
        y = layers.convolve(blocks, taps.reshape(*(4,) * rank, blocks.shape[-1], self.channels))
        return jax.lax.slice(y, (0,) * y.ndim, (y.shape[0], *halved, self.channels))


class NormConv(nn.Module):
    """Norm, ReLU, convolution: [B, *S, C] -> [B, *S, channels]."""

    channels: int
    kernel: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(layers.Norm(self.norm, dtype=self.dtype, name="norm")(x, train))
        conv = layers.Conv(self.channels, self.kernel, bias=False, dtype=self.dtype, name="conv")
        return conv(x)


class DenseBlock(nn.Module):
    """Layers that each see all before them: [B, *S, C] -> [B, *S, C + count * growth].

    A norm and a ReLU close the block.
    """

    count: int
    growth: int
    norm: str
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.count + 1):
            narrow, new = (
                NormConv(channels, kernel, self.norm, self.dtype, name=f"layer_{i}_{name}")
                for name, kernel, channels in (
                    ("narrow", 1, _BOTTLENECK * self.growth),
                    ("new", 3, self.growth),
                )
            )
            y = nn.Dropout(self.dropout, deterministic=not train)(new(narrow(x, train), train))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.relu(layers.Norm(self.norm, dtype=self.dtype, name="norm")(x, train))


class DenseNetEncoder(nn.Module):
    """DenseNet-BC. `width` is the growth (32), `depth` counts the stem and the dense blocks (5).

    Fewer than five levels are the stem and the first blocks. A DenseNet computes nothing at full
    resolution: the first of the features' levels is the input itself, the others, `depth` in
    number, are the stem's and the blocks' outputs at strides 2, 4, 8, 16 and 32.
    """

    width: int
    depth: int
    norm: str = "group"
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Features:
        dtype = DTYPES[self.dtype]
        levels = [x.astype(dtype)]
        x = Stem(_STEM * self.width, dtype, name="stem")(x)
        x = nn.relu(layers.Norm(self.norm, dtype=dtype, name="stem_norm")(x, train))
        levels.append(x)
        x = overlapping_max_pool(x)
        for i, count in enumerate(BLOCKS[: self.depth - 1], start=1):
            if i > 1:
                # In the original after the product, which it commutes with at four times the work.
                x = mean_pool(x)
                half = layers.Conv(
                    x.shape[-1] // 2, kernel=1, bias=False, dtype=dtype, name=f"transition_{i - 1}"
                )
                x = half(x)
            block = DenseBlock(count, self.width, self.norm, self.dropout, dtype, name=f"block_{i}")
            x = block(x, train)
            levels.append(x)
        return Features(tuple(levels))


def build(settings: Mapping[str, Any]) -> DenseNetEncoder:
    """The encoder of these settings, which are checked for what is particular to a DenseNet.

    Raises:
        UserError: a depth that there is not, or a setting that would have no effect.
    """
    fields = dict(settings)
    most = 1 + len(BLOCKS)
    if not 2 <= fields["depth"] <= most:
        raise UserError(
            f"encoder.depth is {fields['depth']}; with encoder.kind=densenet121 it counts the stem "
            f"and the dense blocks: choose 2 to {most}"
        )
    for key, neutral in (("activation_first", False), ("final_pool", "none")):
        if fields.pop(key, neutral) != neutral:
            raise UserError(f"encoder.kind=densenet121 has no encoder.{key}; set it to {neutral}")
    return DenseNetEncoder(**fields)
