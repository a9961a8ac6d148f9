"""Convolution and mean pooling with a kernel and a stride per axis.

For networks that are planned for anisotropic voxels, as nnU-Net's. A kernel has 1 or 3 voxels along
an axis, a stride is 1 or 2, and n voxels become ceil(n / stride). The forms are chosen as in
`layers`: nothing strided on CPUs, no `reduce_window`.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from ssl3d.models import layers, remat

Axes = tuple[int, ...]
"""A number for every spatial axis."""


def pad(
    x: Float[Array, "B *S C"], axis: int, before: int, after: int, value: float = 0
) -> Float[Array, "B *padded C"]:
    """Voxels of `value` along one axis; negative numbers remove some."""
    widths = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), widths)


def pairs(
    x: Float[Array, "B *S C"], axis: int
) -> tuple[Float[Array, "B *half C"], Float[Array, "B *half C"]]:
    """The even and the odd voxels along `axis`, which has an even length."""
    split = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(split, i, axis + 1, keepdims=False) for i in (0, 1))
    return even, odd


def mean_pool(x: Float[Array, "B *S C"], strides: Axes) -> Float[Array, "B *strided C"]:
    """Mean over blocks of `strides` voxels.

    Along an odd axis the last block is one voxel wide.
    """
    for axis, stride in enumerate(strides, start=1):
        if stride == 1:
            continue
        if x.shape[axis] % 2:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            x = jnp.concatenate([x, last], axis)  # the mean of a voxel and itself
        even, odd = pairs(x, axis)
        x = (even + odd) / 2
    return x


def convolve(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"], strides: Axes
) -> Float[Array, "B *strided D"]:
    """Convolution, padded with zeros by (k - 1) / 2 voxels on both sides."""
    if math.prod(strides) > 1:
        return jax.lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _convolve_patches(x, kernel, strides),
            default=lambda x, kernel: _convolve_strided(x, kernel, strides),
        )
    if len(set(kernel.shape[:-2])) == 1:
        return layers.convolve(x, kernel)
    return _convolve_folded(x, kernel)


def _convolve_strided(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"], strides: Axes
) -> Float[Array, "B *strided D"]:
    """The library's, for accelerators."""
    axes = "DHW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [((taps - 1) // 2,) * 2 for taps in kernel.shape[:-2]],
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )


def _convolve_patches(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"], strides: Axes
) -> Float[Array, "B *strided D"]:
    """One matrix product over the neighbourhoods of the voxels that remain (im2col)."""
    shifted = [x]
    for axis, (taps, stride) in enumerate(zip(kernel.shape[:-2], strides, strict=True), start=1):
        shifted = [part for whole in shifted for part in _under_taps(whole, axis, taps, stride)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _under_taps(
    x: Float[Array, "B *S C"], axis: int, taps: int, stride: int
) -> tuple[Float[Array, "B *strided C"], ...]:
    """What lies under each tap of a kernel along `axis`, for all of its places."""
    if stride == 1:
        around = pad(x, axis, 1, -1), x, pad(x, axis, -1, 1)
    else:
        even, odd = pairs(pad(x, axis, 0, x.shape[axis] % 2), axis)
        around = pad(odd, axis, 1, -1), even, odd
    return around if taps == 3 else around[1:2]


def _convolve_folded(
    x: Float[Array, "B *S C"], kernel: Float[Array, "*k C D"]
) -> Float[Array, "B *S D"]:
    """Axes along which the kernel has one voxel become part of the batch."""
    folded = [axis for axis, taps in enumerate(kernel.shape[:-2], start=1) if taps == 1]
    others = [axis for axis in range(1, x.ndim - 1) if axis not in folded]
    order = [0, *folded, *others, x.ndim - 1]
    moved = x.transpose(order)
    batch = moved.shape[: 1 + len(folded)]
    flat = moved.reshape(-1, *moved.shape[len(batch) :])
    y = layers.convolve(flat, jnp.squeeze(kernel, [axis - 1 for axis in folded]))
    y = y.reshape(*batch, *y.shape[1:])
    return y.transpose([order.index(axis) for axis in range(x.ndim)])


class Conv(nn.Module):
    """Convolution with a kernel and a stride per axis."""

    channels: int
    kernel: Axes
    strides: Axes
    bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *strided {self.channels}"]:
        shape = (*self.kernel, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides)
        if math.prod(self.kernel) > 1:
            y = remat.kept(y)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)
        return y
