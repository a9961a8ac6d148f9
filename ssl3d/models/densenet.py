"""DenseNet-121 (Huang et al., CVPR 2017): the paper's 2D encoder, and the same network in 3D.

Keras' DenseNet121 without its top: a 7x7 convolution and a 3x3 max pooling, both of stride 2,
then four dense blocks, each of whose layers adds `width` channels to those of all layers before
it. Transitions between blocks halve the channels and the size. Norm and ReLU precede every
convolution. Odd sizes are rounded up at every halving, where Keras rounds some of them down.

Convolution and pooling are spelled as in `layers`: nothing strided, no `reduce_window`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ssl3d.errors import UserError
from ssl3d.models import layers, remat, strided
from ssl3d.models.features import DTYPES, Features

BLOCKS = (6, 12, 24, 16)  # layers of each dense block
_STEM = 2  # channels of the stem, in units of the growth
_BOTTLENECK = 4  # channels between the two convolutions of a layer, in units of the growth


def overlapping_max_pool(x: Float[Array, "B *S C"]) -> Float[Array, "B *half C"]:
    """Maximum over 3^rank voxels, stride 2.

    Among equal voxels the first gets the gradient.
    """
    # Last axis first: then the first of equal voxels in memory wins, as in the library's version.
    for axis in reversed(range(1, x.ndim - 1)):
        x = strided.pad(x, axis, 0, x.shape[axis] % 2, -jnp.inf)
        centre, after = strided.pairs(x, axis)
        before = strided.pad(after, axis, 1, -1, -jnp.inf)
        x = _larger(_larger(before, centre), after)
    return x


def _larger(
    first: Float[Array, "B *S C"], second: Float[Array, "B *S C"]
) -> Float[Array, "B *S C"]:
    """The maximum, with a gradient that goes to exactly one of the two.

    The gradient of `jnp.maximum` can be lost or NaN, see `layers._block_max`.
    """
    return jnp.where(second > first, second, first)


class Stem(nn.Module):
    """Convolution with kernel 7^rank and stride 2."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *half {self.channels}"]:
        rank, halved = x.ndim - 2, tuple(-(-n // 2) for n in x.shape[1:-1])
        shape = (*(7,) * rank, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        # With one voxel of padding in front, the 7 taps around voxel 2i and an eighth of zero cover
        # exactly the four blocks from i - 1 on: a convolution of stride 1 over blocks.
        blocks = layers.space_to_depth(
            jnp.pad(x.astype(self.dtype), [(0, 0), *[(1, 0)] * rank, (0, 0)])
        )
        taps = layers.space_to_depth(jnp.asarray(kernel, self.dtype).reshape(1, *(7,) * rank, -1))
        y = layers.convolve(blocks, taps.reshape(*(4,) * rank, blocks.shape[-1], self.channels))
        return jax.lax.slice(y, (0,) * y.ndim, (y.shape[0], *halved, self.channels))


class NormConv(nn.Module):
    """Norm, ReLU, convolution."""

    channels: int
    kernel: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *S {self.channels}"]:
        x = nn.relu(layers.Norm(self.norm, dtype=self.dtype, name="norm")(x, train))
        conv = layers.Conv(self.channels, self.kernel, bias=False, dtype=self.dtype, name="conv")
        return conv(x)


class DenseBlock(nn.Module):
    """`count` layers that each see all earlier ones and add `growth` channels.

    The block ends with a norm and a ReLU.
    """

    count: int
    growth: int
    norm: str
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *S C+{self.count}*{self.growth}"]:
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
    """DenseNet-BC, an encoder of 1 + `depth` levels.

    Nothing is computed at full resolution: the first level is the input itself, the others are
    the outputs of the stem and the blocks, at strides 2, 4, 8, 16 and 32.

    Attributes:
      width: the growth rate (32 in DenseNet-121).
      depth: the stem and the dense blocks (5 in DenseNet-121); fewer drop the last blocks.
      remat: see `ssl3d.models.remat`.
    """

    width: int
    depth: int
    norm: str = "group"
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"], train: bool = False) -> Features:
        dtype = DTYPES[self.dtype]
        dense_block = remat.level(DenseBlock, self.remat)
        levels = [x.astype(dtype)]
        x = Stem(_STEM * self.width, dtype, name="stem")(x)
        x = nn.relu(layers.Norm(self.norm, dtype=dtype, name="stem_norm")(x, train))
        levels.append(x)
        x = overlapping_max_pool(x)
        for i, count in enumerate(BLOCKS[: self.depth - 1], start=1):
            if i > 1:
                # The original pools after the convolution: the same result at four times the work.
                x = strided.mean_pool(x, (2,) * (x.ndim - 2))
                half = layers.Conv(
                    x.shape[-1] // 2, kernel=1, bias=False, dtype=dtype, name=f"transition_{i - 1}"
                )
                x = half(x)
            settings = count, self.width, self.norm, self.dropout, dtype
            block = dense_block(*settings, name=f"block_{i}")
            x = block(x, train)
            levels.append(x)
        return Features(tuple(levels))


def build(**settings: Any) -> DenseNetEncoder:
    """The encoder of these settings. Raises `UserError` for a depth that it cannot have."""
    most = 1 + len(BLOCKS)
    if not 2 <= settings["depth"] <= most:
        raise UserError(
            f"encoder.depth is {settings['depth']}; a DenseNet's counts the stem and the dense "
            f"blocks: choose 2 to {most}"
        )
    return DenseNetEncoder(**settings)
