"""Convolution, pooling, resampling and normalisation: one implementation of each, in any rank.

The array tells the rank: x is [B, *S, C] and rank = x.ndim - 2. `half` is S / 2, rounded up;
D are the channels of a convolution's output. Every implementation is chosen
for speed and agrees with the library's in value and gradient. In brackets, how much slower the
library's is on CPU: max pooling over blocks (`reduce_window`: 15 times), strided convolution as
space-to-depth and a matrix product (20-60 times, slow on GPU too), transposed convolution as a
matrix product and depth-to-space (45 times), group norm from per-channel sums (3 times), weight
gradients of convolutions in C++ (2-9 times).

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
from ssl3d.models import planes, remat, weight_gradient

NORMS = ("group", "instance", "batch")

Moment = Float32[Array, "*kept C"]  # of a norm, or what follows from it

# With one channel per group, group norm is instance norm, which removes the mean of every
# channel: groups keep at least four channels, and there are at most eight groups.
_GROUPS, _GROUP_CHANNELS = 8, 4

_EPSILON = 1e-5
_STRIDE = 8  # of the voxels by which a norm estimates the mean
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


def depth_to_space(
    x: Float[Array, "B *S D"], strides: tuple[int, ...] = ()
) -> Float[Array, "B *larger D//2**{x.ndim-2-strides.count(1)}"]:
    """Channels into blocks of `strides` voxels, 1 or 2 each; by default, of `space_to_depth`."""
    rank = x.ndim - 2
    strides = strides or (2,) * rank
    blocks = x.reshape(*x.shape[:-1], *strides, -1)
    order = itertools.chain.from_iterable((axis, axis + rank) for axis in _spatial(x))
    larger = [stride * x.shape[axis] for axis, stride in zip(_spatial(x), strides, strict=True)]
    return blocks.transpose(0, *order, blocks.ndim - 1).reshape(x.shape[0], *larger, -1)


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
    if weight_gradient.suits(x, kernel):
        return _convolve_natively(x, kernel)
    return _convolve_by_platform(x, kernel)


def _convolve_by_platform(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]
) -> Float[Array, "B *S D"]:
    if min(x.shape[axis] for axis in _spatial(x)) < kernel.shape[0]:
        on_cpu = _convolve_patches
    elif x.ndim == 5 and not xla.onednn():
        on_cpu = _convolve_slices
    else:
        on_cpu = _convolve
    on_tpu = planes.convolve if planes.pay(x) else _convolve
    # Chosen by the platform compiled for, which need not be the one at hand.
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, tpu=on_tpu, default=_convolve)


_convolve_natively = weight_gradient.native(_convolve_by_platform)


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
        y = convolve(x.astype(self.dtype), jnp.asarray(kernel, self.dtype))
        if self.kernel > 1:
            y = remat.kept(y)
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
        x, kernel = x.astype(self.dtype), jnp.asarray(kernel, self.dtype)
        if not planes.pay(x):
            return _downsample(x, kernel)
        return jax.lax.platform_dependent(x, kernel, tpu=planes.downsample, default=_downsample)


def _downsample(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]
) -> Float[Array, "B *half D"]:
    return space_to_depth(x) @ kernel.reshape(-1, kernel.shape[-1])


class Upsample(nn.Module):
    """Transposed convolution whose kernel is its stride, by default 2 along every axis."""

    channels: int
    bias: bool = False
    dtype: DTypeLike = jnp.float32
    strides: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *larger {self.channels}"]:
        rank = x.ndim - 2
        strides = self.strides or (2,) * rank
        # Every output voxel sees one input voxel: the fan-in is C, whatever the kernel's volume.
        scale = 2.0 * math.prod(strides)
        init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
        shape = (*strides, x.shape[-1], self.channels)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        flat = jnp.moveaxis(kernel, rank, 0).reshape(x.shape[-1], -1)
        y = depth_to_space(x.astype(self.dtype) @ flat, strides)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)
        return y


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
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"], train: bool = False) -> Float[Array, "B *S C"]:
        channels, values = x.shape[-1], x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if self.kind == "batch":
            moments, epsilon = self._batch_statistics(values, train), _BATCH_EPSILON
        else:
            count = groups(channels) if self.kind == "group" else channels
            moments, epsilon = _moments(values, tuple(_spatial(x)), count), _EPSILON
        shift, mean, variance = map(remat.kept, moments)
        factor = scale * jax.lax.rsqrt(variance + epsilon)
        each = (x.shape[0], *(1 for _ in _spatial(x)), channels)
        terms = (jnp.broadcast_to(term, each) for term in (shift, mean, factor, bias))
        return _normalised(values, *terms).astype(self.dtype)

    def _batch_statistics(
        self, x: Float32[Array, "B *S C"], train: bool
    ) -> tuple[Float32[Array, " C"], Float32[Array, " C"], Float32[Array, " C"]]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        running = [
            self.variable("batch_stats", name, init, None, x.shape[-1:], jnp.float32)
            for name, init in (("mean", zeros), ("var", ones))
        ]
        if not train:
            mean, variance = (jnp.asarray(kept.value) for kept in running)
            return jnp.zeros_like(mean), mean, variance
        moments = _moments(x, tuple(range(x.ndim - 1)), x.shape[-1])
        shift, mean, variance = (m.reshape(-1) for m in moments)
        if not self.is_initializing():
            for kept, new in zip(running, (shift + mean, variance), strict=True):
                kept.value = _BATCH_MOMENTUM * kept.value + (1 - _BATCH_MOMENTUM) * new
        return shift, mean, variance


def _moments(
    x: Float32[Array, "B *S C"], axes: tuple[int, ...], count: int
) -> tuple[Moment, Moment, Moment]:
    """Moments over `axes`, kept with length 1, and the channels of each of `count` groups.

    In one pass over the values less an estimate of their mean: without it, E[x^2] - E[x]^2 cancels
    where the mean is far from zero, and with two passes a step of the reference encoder takes 6 %
    longer. The estimate is the mean of every eighth row and column. As it is the mean of a share f
    of the values, it is off by at most 1 / sqrt(f) deviations, whatever the values are. Devices
    that share the first spatial axis, where it leaves out nothing, exchange no voxels for it; like
    any form in two stages, it costs them one sum of [B, C] numbers more per norm.

    Returns:
      The estimate, the mean less the estimate, and the (biased) variance.
    """
    some = x[tuple(slice(None, None, _STRIDE if a in axes and a > 1 else 1) for a in range(x.ndim))]
    shift = jax.lax.stop_gradient(_pooled(some.mean(axes, keepdims=True), count))
    shifted = x - shift
    mean = _pooled(shifted.mean(axes, keepdims=True), count)
    square = _pooled(jnp.square(shifted).mean(axes, keepdims=True), count)
    return shift, mean, jnp.maximum(square - jnp.square(mean), 0)


def _pooled(means: Moment, count: int) -> Moment:
    """Means per channel -> means of the `count` groups of channels, repeated."""
    size = means.shape[-1] // count
    if size == 1:
        return means
    return jnp.repeat(means.reshape(*means.shape[:-1], count, size).mean(-1), size, axis=-1)


# jax's gradient would sum the products of upstream gradient and shifted values, in a loop that
# costs 4 % of a step. The sums here are those of the unshifted values, and the shift is subtracted
# plane by plane, while they are small.
@jax.custom_vjp
def _normalised(
    x: Float32[Array, "B *S C"], shift: Moment, mean: Moment, factor: Moment, bias: Moment
) -> Float32[Array, "B *S C"]:
    """(x - shift - mean) factor + bias."""
    return (x - shift - mean) * factor + bias


def _normalised_and_residuals(
    x: Float32[Array, "B *S C"], shift: Moment, mean: Moment, factor: Moment, bias: Moment
) -> tuple[Float32[Array, "B *S C"], tuple[Array, ...]]:
    return _normalised(x, shift, mean, factor, bias), (x, shift, mean, factor)


def _normalised_gradient(
    residuals: tuple[Array, ...], gradient: Float32[Array, "B *S C"]
) -> tuple[Array, ...]:
    x, shift, mean, factor = residuals
    first, plane = tuple(_spatial(x))[:1], tuple(_spatial(x))[1:]
    totals = gradient.sum(plane, keepdims=True)
    products = (gradient * x).sum(plane, keepdims=True)
    by_factor = (products - shift * totals - mean * totals).sum(first, keepdims=True)
    total = totals.sum(first, keepdims=True)
    return gradient * factor, -factor * total, -factor * total, by_factor, total


_normalised.defvjp(_normalised_and_residuals, _normalised_gradient)
