"""3D convolutions as sums of 2D ones over planes: the forms for large volumes on TPUs.

libtpu gives a 3D convolution of few large volumes a bad layout: it cuts the last axis into the
batch, so that 32 channels lie in 128 lanes, and copies the whole level for it. With the first
spatial axis in the batch, it sees many planes instead, and finds the layout that it finds for many
small patches. Values and gradients are those of the 3D convolution.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# Planes are faster for large volumes, and for the deeper levels of few; for the many patches of a
# grid, 72 of 34^3 on a chip, they take three times as long (libtpu 0.0.50, v5e, by `ssl3d.plan`).
_LARGE = 48**3  # voxels
_FEW, _LEAST = 64, 16**3  # volumes on all chips together, voxels


def pay(x: Float[Array, "B *S C"]) -> bool:
    """Whether a TPU convolves these volumes faster by planes."""
    voxels = math.prod(x.shape[1:-1])
    return x.ndim == 5 and (voxels >= _LARGE or (len(x) <= _FEW and voxels >= _LEAST))


def convolve(
    x: Float[Array, "B X Y Z C"], kernel: Float[Array, "k k k C D"]
) -> Float[Array, "B X Y Z D"]:
    """Stride 1, same size: a 2D convolution for each plane of the kernel."""
    taps = len(kernel)
    padded = jnp.pad(x, [(0, 0), ((taps - 1) // 2, taps // 2), *[(0, 0)] * 3])
    planes = (
        _convolve(padded[:, tap : tap + x.shape[1]], plane, "SAME", 1)
        for tap, plane in enumerate(kernel)
    )
    return functools.reduce(operator.add, planes)


def downsample(
    x: Float[Array, "B X Y Z C"], kernel: Float[Array, "2 2 2 C D"]
) -> Float[Array, "B x y z D"]:
    """Kernel and stride 2, odd axes padded with a zero at the far end."""
    x = jnp.pad(x, [(0, 0), *((0, side % 2) for side in x.shape[1:-1]), (0, 0)])
    planes = (_convolve(x[:, tap::2], plane, "VALID", 2) for tap, plane in enumerate(kernel))
    return functools.reduce(operator.add, planes)


def _convolve(
    x: Float[Array, "B X Y Z C"], kernel: Float[Array, "k k C D"], padding: str, stride: int
) -> Float[Array, "B X y z D"]:
    """A 2D convolution of all planes."""
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, (stride, stride), padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y.reshape(*x.shape[:2], *y.shape[1:])
