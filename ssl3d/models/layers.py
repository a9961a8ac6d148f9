"""Convolution, pooling, resampling and normalisation: one implementation of each, in any rank.

The array tells the rank: x is [B, *S, C] and rank = x.ndim - 2. `half` is S / 2, rounded up;
D are the channels of a convolution's output. Every implementation is chosen
for speed and agrees with the library's in value and gradient. In brackets, how much slower the
library's is on CPU: max pooling over blocks (`reduce_window`: 15 times), strided convolution as
space-to-depth and a matrix product (20-60 times, slow on GPU too), transposed convolution as a
matrix product and depth-to-space (45 times), group norm from per-channel sums (3 times).

Parameters are float32; `dtype` is the type of the computation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Real, UInt8

from ssl3d import xla

NORMS = ("group", "instance", "batch")

# With one channel per group, group norm is instance norm, which removes the mean of every
# channel: groups keep at least four channels, and there are at most eight groups.
_GROUPS, _GROUP_CHANNELS = 8, 4

_EPSILON = 1e-5
_BATCH_EPSILON, _BATCH_MOMENTUM = 1e-3, 0.99  # Keras' defaults, as the original code has them


def _spatial(x: Array) -> range:
    return range(1, x.ndim - 1)


def _pad_to_even(x: Real[Array, "B *S C"], value: float) -> Real[Array, "B *even C"]:
    widths = [(0, x.shape[axis] % 2 if axis in _spatial(x) else 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if any(b for _, b in widths) else x


def _blocks(x: Real[Array, "B *even C"]) -> tuple[Real[Array, "B *blocks C"], tuple[int, ...]]:
    """[B, *S, C] with even S -> [B, S1/2, 2, S2/2, 2, ..., C] and the axes of the twos."""
    halves = itertools.chain.from_iterable((x.shape[axis] // 2, 2) for axis in _spatial(x))
    rank = x.ndim - 2
    return x.reshape(x.shape[0], *halves, x.shape[-1]), tuple(range(2, 2 + 2 * rank, 2))


def max_pool(x: Float[Array, "B *S C"]) -> Float[Array, "B *half C"]:
    """Maximum over blocks of 2^rank voxels.

    Along an odd axis the last block is one voxel wide. Among equal voxels the first gets the
    gradient.
    """
    return _block_max(_blocks(_pad_to_even(x, -jnp.inf))[0])


# jax's gradient of a maximum compares all values with it. XLA may recompute those values with
# different rounding; then none is equal, and the gradient is lost or NaN (seen on CPU with jax
# 0.10 and 0.12). Storing the index is safe, faster, and smaller than storing the values.
@jax.custom_vjp
def _block_max(blocks: Float[Array, "B *blocks C"]) -> Float[Array, "B *half C"]:
    """[B, S1, 2, S2, 2, ..., C] -> [B, *S, C]"""
    return _block_max_and_place(blocks)[0]


def _block_max_and_place(
    blocks: Float[Array, "B *blocks C"],
) -> tuple[Float[Array, "B *half C"], UInt8[Array, "B *half C"]]:
    rank = (blocks.ndim - 2) // 2
    every = slice(None)
    corners = [
        blocks[every, *itertools.chain.from_iterable((every, i) for i in corner)]
        for corner in itertools.product((0, 1), repeat=rank)
    ]
    maximum, place = corners[0], jnp.zeros(corners[0].shape, jnp.uint8)
    for number, corner in enumerate(corners[1:], start=1):
        place = jnp.where(corner > maximum, jnp.uint8(number), place)
        maximum = jnp.maximum(corner, maximum)
    return maximum, place


def _block_max_gradient(
    place: UInt8[Array, "B *half C"], gradient: Float[Array, "B *half C"]
) -> tuple[Float[Array, "B *blocks C"]]:
    rank = gradient.ndim - 2
    twos = tuple(range(2, 2 + 2 * rank, 2))
    numbers = jnp.arange(2**rank, dtype=jnp.uint8)
    numbers = numbers.reshape([2 if axis in twos else 1 for axis in range(2 + 2 * rank)])
    here = jnp.expand_dims(place, twos) == numbers
    return (jnp.where(here, jnp.expand_dims(gradient, twos), 0),)


_block_max.defvjp(_block_max_and_place, _block_max_gradient)


def space_to_depth(x: Float[Array, "B *S C"]) -> Float[Array, "B *half C*2**{x.ndim-2}"]:
    """Blocks of 2^rank voxels into channels.

    Odd axes are padded with a zero at the far end.
    """
    blocks, twos = _blocks(_pad_to_even(x, 0))
    halves = tuple(axis - 1 for axis in twos)
    blocks = blocks.transpose(0, *halves, *twos, blocks.ndim - 1)
    return blocks.reshape(*blocks.shape[: x.ndim - 1], -1)


def depth_to_space(x: Float[Array, "B *S D"]) -> Float[Array, "B *doubled D//2**{x.ndim-2}"]:
    """The inverse of `space_to_depth`."""
    rank = x.ndim - 2
    blocks = x.reshape(*x.shape[:-1], *(2,) * rank, -1)
    order = itertools.chain.from_iterable((axis, axis + rank) for axis in _spatial(x))
    doubled = [2 * x.shape[axis] for axis in _spatial(x)]
    return blocks.transpose(0, *order, blocks.ndim - 1).reshape(x.shape[0], *doubled, -1)


def upsample_nearest(x: Float[Array, "B *S C"]) -> Float[Array, "B *doubled C"]:
    """Repeats every voxel over a block of 2^rank."""
    shape = itertools.chain.from_iterable((x.shape[axis], 1) for axis in _spatial(x))
    blocks, twos = x.reshape(x.shape[0], *shape, x.shape[-1]), range(2, 2 * (x.ndim - 2) + 1, 2)
    doubled = [2 * x.shape[axis] for axis in _spatial(x)]
    target = [2 if axis in twos else n for axis, n in enumerate(blocks.shape)]
    return jnp.broadcast_to(blocks, target).reshape(x.shape[0], *doubled, x.shape[-1])


def convolve(x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]) -> Float[Array, "B *S D"]:
    """Convolution of stride 1 that keeps the size ("SAME")."""
    if math.prod(kernel.shape[:-2]) == 1:
        return x @ kernel.reshape(kernel.shape[-2:])
    if min(x.shape[axis] for axis in _spatial(x)) < kernel.shape[0]:
        on_cpu = _convolve_patches
    elif x.ndim == 5 and not xla.onednn():
        on_cpu = _convolve_slices
    else:
        on_cpu = _convolve
    # Chosen by the platform compiled for, which need not be the one at hand.
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_convolve)


def _convolve(x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]) -> Float[Array, "B *S D"]:
    """The library's convolution: the fastest on GPU and TPU and, mostly, with oneDNN."""
    axes = "DHW"[-(x.ndim - 2) :]
    spec = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * (x.ndim - 2), "SAME", dimension_numbers=spec
    )


def _pad_same(
    x: Float[Array, "B *S C"], taps: int, axes: Sequence[int]
) -> Float[Array, "B *padded C"]:
    widths = [((taps - 1) // 2, taps // 2) if axis in axes else (0, 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths)


def _convolve_patches(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]
) -> Float[Array, "B *S D"]:
    """Convolution as one matrix product over the neighbourhoods of all voxels (im2col).

    XLA:CPU's convolution takes 5-10 times as long, with or without oneDNN, if an axis is shorter
    than the kernel, as in the bottleneck of small patches.
    """
    taps, rank = kernel.shape[0], x.ndim - 2
    padded = _pad_same(x, taps, _spatial(x))
    shifted = [
        padded[:, *(slice(t, t + n) for t, n in zip(tap, x.shape[1:-1], strict=True))]
        for tap in itertools.product(range(taps), repeat=rank)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _convolve_slices(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]
) -> Float[Array, "B *S D"]:
    """3D convolution as a 2D one over slices with neighbouring slices stacked as channels.

    XLA:CPU without oneDNN is fast in 2D only.
    """
    batch, depth, *plane, _ = x.shape
    taps, *window, _, channels = kernel.shape
    padded = _pad_same(x, taps, (1,))
    stacked = jnp.concatenate([padded[:, t : t + depth] for t in range(taps)], axis=-1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*window, -1, channels)
    y = _convolve(stacked.reshape(batch * depth, *plane, -1), flat)
    return y.reshape(batch, depth, *plane, channels)


class Conv(nn.Module):
    """Convolution with kernel k^rank, stride 1, same size."""

    channels: int
    kernel: int = 3
    bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S {self.channels}"]:
        shape = (*(self.kernel,) * (x.ndim - 2), x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)
        return y


class Downsample(nn.Module):
    """Convolution with kernel 2^rank and stride 2."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *half {self.channels}"]:
        shape = (*(2,) * (x.ndim - 2), x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        return space_to_depth(x.astype(self.dtype)) @ kernel.astype(self.dtype).reshape(
            -1, self.channels
        )


class Upsample(nn.Module):
    """Transposed convolution, kernel 2^rank, stride 2."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *doubled {self.channels}"]:
        rank = x.ndim - 2
        shape = (*(2,) * rank, x.shape[-1], self.channels)
        # Every output voxel sees one input voxel: the fan-in is C, not 2^rank C.
        init = nn.initializers.variance_scaling(2.0 * 2**rank, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        flat = jnp.moveaxis(kernel, rank, 0).reshape(x.shape[-1], -1)
        return depth_to_space(x.astype(self.dtype) @ flat)


def groups(channels: int) -> int:
    """How many groups `Norm("group")` splits the channels into."""
    most = max(1, min(_GROUPS, channels // _GROUP_CHANNELS))
    return next(n for n in range(most, 0, -1) if channels % n == 0)


class Norm(nn.Module):
    """Group, instance or batch normalisation with a scale and shift per channel.

    The result has `dtype`; statistics are always float32. Batch norm keeps running statistics in
    the collection `batch_stats` and uses them outside training.
    """

    kind: str = "group"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"], train: bool = False) -> Float[Array, "B *S C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.kind == "batch":
            mean, variance = self._batch_statistics(x, train)
            factor = scale * jax.lax.rsqrt(variance + _BATCH_EPSILON)
        else:
            count = groups(channels) if self.kind == "group" else channels
            mean, variance = _moments(x, tuple(_spatial(x)))
            if count < channels:
                mean, variance = _pool_channels(mean, variance, count)
            factor = scale * jax.lax.rsqrt(variance + _EPSILON)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)

    def _batch_statistics(
        self, x: Float[Array, "B *S C"], train: bool
    ) -> tuple[Float32[Array, " C"], Float32[Array, " C"]]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        running = [
            self.variable("batch_stats", name, init, None, x.shape[-1:], jnp.float32)
            for name, init in (("mean", zeros), ("var", ones))
        ]
        if not train:
            return running[0].value, running[1].value
        now = [s.reshape(-1) for s in _moments(x, tuple(range(x.ndim - 1)))]
        if not self.is_initializing():
            for kept, new in zip(running, now, strict=True):
                kept.value = _BATCH_MOMENTUM * kept.value + (1 - _BATCH_MOMENTUM) * new
        return now[0], now[1]


def _moments(
    x: Float[Array, "B *S C"], axes: tuple[int, ...]
) -> tuple[Float32[Array, "*kept C"], Float32[Array, "*kept C"]]:
    """Mean and (biased) variance over `axes`, kept with length 1."""
    x = x.astype(jnp.float32)
    mean = x.mean(axes, keepdims=True)
    square = jnp.square(x).mean(axes, keepdims=True)
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _pool_channels(
    mean: Float32[Array, "*B C"], variance: Float32[Array, "*B C"], count: int
) -> tuple[Float32[Array, "*B C"], Float32[Array, "*B C"]]:
    """Moments of channels -> moments of their `count` groups, repeated."""
    square = variance + jnp.square(mean)
    grouped = [m.reshape(*m.shape[:-1], count, -1).mean(-1) for m in (mean, square)]
    per_group = mean.shape[-1] // count
    mean, square = (jnp.repeat(m, per_group, axis=-1) for m in grouped)
    return mean, jnp.maximum(square - jnp.square(mean), 0)
