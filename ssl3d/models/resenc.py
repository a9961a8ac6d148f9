"""nnU-Net's residual encoder with its decoder, weight for weight.

Isensee et al. 2024 (nnU-Net Revisited); `ResidualEncoder` and `UNetDecoder` of the package
dynamic-network-architectures, whose names the parameters have. A stem, then residual blocks of two
convolutions, the first one of a level with the level's stride. Shortcuts average over the stride
and are projected where channels change (ResNet-D, He et al. 2019).

With 6 levels of width 32 this is the network of nnU-Net's presets M, L and XL, which differ in crop
and batch, and of the OpenMind checkpoints (Wald et al. 2025).

The package needs sizes that its strides divide. Here any size is rounded up at every stride, as in
the other encoders: the last block of a mean pool is one voxel wide.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from ssl3d.errors import UserError
from ssl3d.models import layers, remat, strided
from ssl3d.models.decoders import PROJECTION, Projection
from ssl3d.models.features import DTYPES, Features
from ssl3d.models.strided import Axes

BLOCKS = (1, 3, 4, 6)  # of the first levels; all later ones have as many as the last of these
_MOST_CHANNELS = {2: 512, 3: 320}  # by rank
_SLOPE = 0.01  # of the leaky ReLU
_MOST_BLOCKS = 64


class Level(NamedTuple):
    """A level of the encoder (nnU-Net: stage)."""

    channels: int
    blocks: int
    strides: Axes
    kernel: Axes


class Shape(NamedTuple):
    """The settings of an encoder's shape; an empty or zero one is nnU-Net's.

    Attributes:
      width: channels of the first level, doubled with each.
      depth: levels, including the bottleneck.
      max_width: the most channels of a level; 0: 512 in 2D and 320 in 3D.
      blocks: residual blocks of each level.
      strides: of each level, per axis; the first level has none.
      kernels: voxels per axis of the kernels of each level.
    """

    width: int
    depth: int
    max_width: int = 0
    blocks: tuple[int, ...] = ()
    strides: tuple[Axes, ...] = ()
    kernels: tuple[Axes, ...] = ()

    def levels(self, rank: int) -> list[Level]:
        """The levels for images of a rank. Raises `UserError` where settings are of another."""
        most = self.max_width or _MOST_CHANNELS[rank]
        ones, twos, threes = ((n,) * rank for n in (1, 2, 3))
        strides = self.strides or (ones, *(twos,) * (self.depth - 1))
        kernels = self.kernels or (threes,) * self.depth
        for key, axes in (("strides", strides), ("kernels", kernels)):
            if len(axes[0]) != rank:
                raise UserError(
                    f"encoder.{key}={axes}: is for {len(axes[0])}D images, these are {rank}D"
                )
        blocks = self.blocks or (*BLOCKS, *BLOCKS[-1:] * self.depth)[: self.depth]
        return [
            Level(min(self.width * 2**i, most), *settings)
            for i, settings in enumerate(zip(blocks, strides, kernels, strict=True))
        ]


class ConvNorm(nn.Module):
    """Convolution, norm and, if it is `active`, leaky ReLU."""

    channels: int
    kernel: Axes
    strides: Axes
    norm: str
    bias: bool = True
    active: bool = True
    dropout: float = 0.0
    initial_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *strided {self.channels}"]:
        conv = strided.Conv(
            self.channels, self.kernel, self.strides, self.bias, self.dtype, name="conv"
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(conv(x))
        norm = layers.Norm(self.norm, self.dtype, self.initial_scale, name="norm")
        x = norm(x, train)
        return nn.leaky_relu(x, _SLOPE) if self.active else x


class Block(nn.Module):
    """Two convolutions with a shortcut. It starts as the shortcut alone, as nnU-Net's do."""

    channels: int
    kernel: Axes
    strides: Axes
    norm: str
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> Float[Array, "B *strided {self.channels}"]:
        ones, pools = (1,) * len(self.strides), max(self.strides) > 1
        part = functools.partial(ConvNorm, self.channels, norm=self.norm, dtype=self.dtype)
        first = part(self.kernel, self.strides, dropout=self.dropout, name="conv1")
        second = part(self.kernel, ones, active=False, initial_scale=0.0, name="conv2")
        y = second(first(x, train), train)
        x = strided.mean_pool(x, self.strides)
        if x.shape[-1] != self.channels:
            # The second module of the shortcut where the first one pools.
            shortcut = part(ones, ones, bias=False, active=False, name=f"skip.{int(pools)}")
            x = shortcut(x, train)
        return nn.leaky_relu(x + y, _SLOPE)


class ResidualEncoder(nn.Module):
    """The encoder: features of every level of `shape`; for `remat` see `ssl3d.models.remat`."""

    shape: Shape
    norm: str = "instance"
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"], train: bool = False) -> Features:
        dtype = DTYPES[self.dtype]
        plan = self.shape.levels(x.ndim - 2)
        ones = (1,) * (x.ndim - 2)
        stem = ConvNorm(
            plan[0].channels, plan[0].kernel, ones, self.norm,
            dropout=self.dropout, dtype=dtype, name="stem.convs.0",
        )  # fmt: skip
        x = stem(x, train)
        levels, kind = [], remat.level(Block, self.remat)
        for i, (channels, blocks, strides, kernel) in enumerate(plan):
            for j in range(blocks):
                block = kind(
                    channels, kernel, ones if j else strides, self.norm, self.dropout, dtype,
                    name=f"stages.{i}.blocks.{j}",
                )  # fmt: skip
                x = block(x, train)
            levels.append(x)
        return Features(tuple(levels))

    @nn.nowrap
    def decoder(self, outputs: int, deep: int, name: str | None) -> Decoder:
        """The decoder that continues it, see `decoders.build`."""
        settings = self.norm, self.dropout, self.dtype, self.remat
        return Decoder(self.shape, outputs, deep, *settings, name=name)


class Decoder(nn.Module):
    """Features -> logits at 1 + `deep` resolutions, finest first.

    From the bottleneck up: a transposed convolution, the encoder's level of that size, one
    convolution. The other attributes are the encoder's.
    """

    shape: Shape
    outputs: int
    deep: int = 0
    norm: str = "instance"
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Features, train: bool = False
    ) -> tuple[Float32[Array, "B ... {self.outputs}"], ...]:
        dtype = DTYPES[self.dtype]
        *skips, x = features.levels
        rank = x.ndim - 2
        plan = self.shape.levels(rank)
        logits = []
        for number, i in enumerate(reversed(range(len(skips)))):
            (channels, _, _, kernel), skip = plan[i], skips[i]
            strides, name = plan[i + 1].strides, f"transpconvs.{number}"
            up = layers.Upsample(channels, bias=True, dtype=dtype, strides=strides, name=name)
            # A size that the stride does not divide was rounded up on the way down.
            x = up(x)[:, *(slice(0, side) for side in skip.shape[1:-1])]
            level = remat.level(ConvNorm, self.remat)(
                channels, kernel, (1,) * rank, self.norm,
                dropout=self.dropout, dtype=dtype, name=f"stages.{number}.convs.0",
            )  # fmt: skip
            x = level(jnp.concatenate([x, skip], axis=-1), train)
            if i <= self.deep:
                logits.append(Projection(self.outputs, name=f"{PROJECTION}{i}")(x))
        return tuple(reversed(logits))


def build(
    width: int,
    depth: int,
    max_width: Any,
    blocks: Any,
    strides: Any,
    kernels: Any,
    **settings: Any,
) -> ResidualEncoder:
    """The encoder of these settings; those of the shape are explained in `Shape`.

    Raises:
      UserError: a shape that the encoder cannot have.
    """
    if not isinstance(max_width, int) or max_width < 0 or 0 < max_width < width:
        raise UserError(f"encoder.max_width is {max_width!r}; it must be 0, or at least the width")
    blocks = _per_level("blocks", blocks, depth)
    if not all(isinstance(count, int) and 1 <= count <= _MOST_BLOCKS for count in blocks):
        raise UserError(f"encoder.blocks is {blocks}; choose numbers of 1 to {_MOST_BLOCKS}")
    strides = _axes("strides", strides, depth, (1, 2))
    kernels = _axes("kernels", kernels, depth, (1, 3))
    if strides and set(strides[0]) != {1}:
        raise UserError(f"encoder.strides is {strides}; the first level needs strides of 1")
    return ResidualEncoder(Shape(width, depth, max_width, blocks, strides, kernels), **settings)


def _per_level(key: str, values: Any, depth: int) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)) or len(values) not in (0, depth):
        raise UserError(f"encoder.{key} is {values!r}; give one for each of {depth} levels, or ()")
    return tuple(values)


def _axes(key: str, values: Any, depth: int, allowed: tuple[int, int]) -> tuple[Axes, ...]:
    levels = _per_level(key, values, depth)
    axes = tuple(tuple(level) if isinstance(level, (list, tuple)) else () for level in levels)
    if any(
        len(level) not in (2, 3)
        or len(level) != len(axes[0])
        or not all(value in allowed for value in level)
        for level in axes
    ):
        raise UserError(
            f"encoder.{key} is {values!r}; give {allowed[0]} or {allowed[1]} for each of the 2 or "
            "3 axes of every level"
        )
    return axes


def nnunet_plan(encoder: ResidualEncoder, rank: int) -> dict[str, Any]:
    """The keywords of nnU-Net's `ResidualEncoderUNet` that build the same network.

    Raises:
      UserError: nnU-Net has no such network.
    """
    if encoder.norm != "instance":
        raise UserError(
            f"encoder.norm={encoder.norm}: nnU-Net's networks have instance norm; pretrain with "
            "--config.encoder.norm=instance, or export with --format=torch"
        )
    levels = encoder.shape.levels(rank)
    return {
        "n_stages": len(levels),
        "features_per_stage": [level.channels for level in levels],
        "conv_op": f"torch.nn.modules.conv.Conv{rank}d",
        "kernel_sizes": [list(level.kernel) for level in levels],
        "strides": [list(level.strides) for level in levels],
        "n_blocks_per_stage": [level.blocks for level in levels],
        "n_conv_per_stage_decoder": [1] * (len(levels) - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{rank}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
