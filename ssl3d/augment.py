"""On-device augmentation of one example, in any rank: functions of a key and an image.

The loop maps them over the batch with a key per example, so an example's augmentation depends
neither on its neighbours nor on the batch size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float, Int, Integer, PRNGKeyArray, Real

from ssl3d.errors import UserError

# Variance of one pass of `blur`: with more, its kernel is no longer unimodal.
_TAP_VARIANCE = 0.5

# Planes of a volume, by the names of their axes.
PLANES = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}


def _per_channel(x: Real[Array, "*S C"]) -> tuple[int, ...]:
    return (1,) * (x.ndim - 1) + (x.shape[-1],)


def scale_and_shift(
    key: PRNGKeyArray, x: Float[Array, "*S C"], strength: float
) -> Float[Array, "*S C"]:
    """x * a + b with a in 1 ± strength and b in ± strength, sampled per channel.

    Applied to every patch separately, so that brightness does not reveal which patches are
    neighbours. `x` is expected to be normalised (foreground of unit variance).
    """
    gain, shift = jax.random.uniform(
        key, (2, *_per_channel(x)), minval=-strength, maxval=strength, dtype=x.dtype
    )
    return x * (1 + gain) + shift


def monotone(key: PRNGKeyArray, x: Float[Array, "*S C"], strength: float) -> Float[Array, "*S C"]:
    """A random monotone map of the intensities of each channel, then a random gain and shift.

    The map is a random convex combination of increasing curves on the range of `x`, mixed with
    the identity: `strength` 0 changes nothing, 1 applies the random curve alone. It preserves the
    order of voxels, but not the histogram.
    """
    curve_key, mix_key, affine_key = jax.random.split(key, 3)
    axes = tuple(range(x.ndim - 1))
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    width = jnp.maximum(high - low, 1e-6)
    u = (x - low) / width
    curves = jnp.stack([u**2, u**4, 1 - (1 - u) ** 2, 1 - (1 - u) ** 4, u * u * (3 - 2 * u)])
    # Squared, the weights let one curve dominate more often than an even mixture would.
    weights = jax.random.exponential(curve_key, (5, *_per_channel(x)), x.dtype) ** 2
    curve = (curves * weights).sum(0) / weights.sum(0)
    share = strength * jax.random.uniform(mix_key, _per_channel(x), x.dtype)
    return scale_and_shift(affine_key, low + width * ((1 - share) * u + share * curve), strength)


def brightness_and_contrast(
    key: PRNGKeyArray,
    x: Float[Array, "*S C"],
    probability: float,
    brightness: float,
    contrast: float,
) -> Float[Array, "*S C"]:
    """With the given probability, shifts x and scales it about its mean, all channels alike.

    The order of voxels and, but for shift and scale, the histogram are kept, unlike by `monotone`.

    Args:
      brightness: the shift is sampled in ± this share of the range of x.
      contrast: the factor is sampled in 1 ± this.
    """
    chance, shift_key, factor_key = jax.random.split(key, 3)
    shift = jax.random.uniform(shift_key, minval=-brightness, maxval=brightness)
    factor = jax.random.uniform(factor_key, minval=1 - contrast, maxval=1 + contrast)
    mean = x.mean()
    changed = factor * (x - mean) + mean + shift * (x.max() - x.min())
    return jnp.where(jax.random.bernoulli(chance, probability), changed, x)


def flips(
    key: PRNGKeyArray, x: Real[Array, "*S C"], probability: float = 0.5
) -> Real[Array, "*S C"]:
    """Mirrors each spatial axis with the given probability."""
    for axis, flip in enumerate(jax.random.bernoulli(key, probability, (x.ndim - 1,))):
        x = jnp.where(flip, jnp.flip(x, axis), x)
    return x


def blur_reach(variance: float) -> int:
    """Voxels on either side that `blur` with this variance needs of an axis."""
    return math.ceil(variance / _TAP_VARIANCE - 1e-6)


def blur(x: Float[Array, "*S C"], variances: Sequence[float]) -> Float[Array, "*inner C"]:
    """Smooths each axis by a kernel of the given variance (voxels^2), cutting off `blur_reach`.

    The kernel is a binomial-like power of (a, 1 - 2a, a), whose variance is exact where a sampled
    Gaussian's is not.
    """
    for axis, variance in enumerate(variances):
        x = blur_axis(x, axis, variance)
    return x


def blur_axis(x: Any, axis: int, variance: float) -> Any:
    """Smooths one axis of a JAX or NumPy array, see `blur`."""
    passes = blur_reach(variance)
    for _ in range(passes):
        a = variance / passes / 2
        last = x.shape[axis] - 2
        before, here, after = (
            x[(slice(None),) * axis + (slice(start, last + start),)] for start in range(3)
        )
        x = (1 - 2 * a) * here + a * (before + after)
    return x


def coarsen(x: Float[Array, "*S C"], factor: int) -> Float[Array, "*blocks C"]:
    """Means over blocks of factor^rank voxels; every side must be a multiple of `factor`."""
    blocks = [size for side in x.shape[:-1] for size in (side // factor, factor)]
    return x.reshape(*blocks, x.shape[-1]).mean(axis=tuple(range(1, 2 * (x.ndim - 1), 2)))


def check_coarsening(factor: int, size: Sequence[int]) -> None:
    """Raises `UserError` unless `factor` divides every side of the crop, `size`."""
    if factor < 1 or any(side % factor for side in size):
        raise UserError(f"config.task.coarsen={factor}: must divide config.data.crop={tuple(size)}")


def signed_permutations(rank: int, group: str) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Rotations of a cube (square) as (axes, flips): out = flip(transpose(x, axes), flips).

    Args:
      rank: 2 or 3.
      group: "axes", identity and 90°, 180°, 270° about each axis in the original code's order
        (3D: 0 identity; 1-3 np.rot90 k = 1, 2, 3 in the plane (0, 1); 4-6 k = 3, 2, 1 in (1, 2);
        7-9 k = 3, 2, 1 in (0, 2); 2D: k = 0..3); "all", the whole group (24 in 3D, 4 in 2D), the
        "axes" ones first; or a plane of `PLANES`, k = 0..3 in it.
    """
    if rank == 3 and group in PLANES:
        turns = [(PLANES[group], k) for k in (1, 2, 3)]
    elif rank == 2:
        turns = [((0, 1), k) for k in (1, 2, 3)]
    else:
        turns = [((0, 1), 1), ((0, 1), 2), ((0, 1), 3)]
        turns += [(plane, k) for plane in ((1, 2), (0, 2)) for k in (3, 2, 1)]
    found = [(tuple(range(rank)), (False,) * rank)]
    found += [quarter_turns(rank, plane, k) for plane, k in turns]
    if group == "all":
        for axes in itertools.permutations(range(rank)):
            for flipped in itertools.product((False, True), repeat=rank):
                proper = _parity(axes) * (-1) ** sum(flipped) == 1
                if proper and (axes, flipped) not in found:
                    found.append((axes, flipped))
    return found


def quarter_turns(
    rank: int, plane: tuple[int, int], k: int
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """np.rot90(x, k, plane) as a transposition and flips."""
    a, b = plane
    axes, flipped = list(range(rank)), [False] * rank
    if k % 2:
        axes[a], axes[b] = b, a
    if k in (1, 2):
        flipped[a] = True
    if k in (2, 3):
        flipped[b] = True
    return tuple(axes), tuple(flipped)


def _parity(axes: tuple[int, ...]) -> int:
    return round(float(np.linalg.det(np.eye(len(axes))[list(axes)])))


def rotate(
    x: Real[Array, "*S C"], index: Int[Array, ""] | int, group: str = "axes"
) -> Real[Array, "*S C"]:
    """Applies rotation number `index` to the cube (square) x, without interpolation.

    One of the few transpositions, then each flip or not: cheaper than computing all rotations and
    choosing one. All spatial sides must be equal.
    """
    table = signed_permutations(x.ndim - 1, group)
    orders = sorted({axes for axes, _ in table})
    which = jnp.asarray([orders.index(axes) for axes, _ in table])[index]
    flipped = jnp.asarray([flips for _, flips in table])[index]
    channel = x.ndim - 1
    # Fused, the choices below would compute each voxel of x again for each of their combinations:
    # 48 times in 3D, and with `flips` before, 384 times.
    x = jax.lax.optimization_barrier(x)
    turned = x.transpose(*orders[0], channel)
    for i, axes in enumerate(orders[1:], start=1):
        turned = jnp.where(which == i, x.transpose(*axes, channel), turned)
    turned = jax.lax.optimization_barrier(turned)
    for axis in range(channel):
        turned = jnp.where(flipped[axis], jnp.flip(turned, axis), turned)
    return turned


def zoom(
    key: PRNGKeyArray, x: Float[Array, "*S C"], probability: float, amount: float
) -> Float[Array, "*S C"]:
    """Scales each axis by its own factor in 1 ± amount, with the given probability.

    About the centre, at the same size, with linear interpolation and the border repeated. Scaling
    is separable: one small matrix per axis, while a gather over all voxels would cost more than the
    network's first level.
    """
    which, factors = jax.random.split(key)
    chosen = jax.random.bernoulli(which, probability)
    scale = jax.random.uniform(factors, (x.ndim - 1,), minval=1 - amount, maxval=1 + amount)
    scale = jnp.where(chosen, scale, 1.0)
    for axis in range(x.ndim - 1):
        side = x.shape[axis]
        centre = (side - 1) / 2
        source = jnp.clip((jnp.arange(side) - centre) / scale[axis] + centre, 0, side - 1)
        weights = jnp.maximum(0, 1 - jnp.abs(source[:, None] - jnp.arange(side)))
        x = jnp.moveaxis(jnp.tensordot(weights.astype(x.dtype), x, (1, axis)), 0, axis)
    return x


def gaussian_noise(
    key: PRNGKeyArray, x: Float[Array, "*S C"], sigma_max: float
) -> Float[Array, "*S C"]:
    """x plus Gaussian noise, with a standard deviation sampled in 0..sigma_max per channel."""
    sigma_key, noise_key = jax.random.split(key)
    sigma = jax.random.uniform(sigma_key, _per_channel(x), x.dtype, maxval=sigma_max)
    return x + sigma * jax.random.normal(noise_key, x.shape, x.dtype)


def spatial(
    key: PRNGKeyArray,
    image: Float[Array, "*S C"],
    label: Integer[Array, "*S"],
    *,
    flip: float,
    flip_axes: Sequence[int],
    rotate_degrees: float,
    zoom: float,
    probability: float,
    outside: int,
) -> tuple[Float[Array, "*S C"], Integer[Array, "*S"]]:
    """Transforms an image and its label together: flips, then rotation and zoom.

    Args:
      flip, flip_axes: probability of mirroring each of these axes.
      rotate_degrees: the angles, one per plane of two axes (3D: three), are sampled in ± this.
      zoom: the factor, the same for all axes, is sampled in 1 ± this.
      probability: of rotation and zoom.
      outside: the label of voxels that come from outside the image, e.g. one the loss ignores.
    """
    mirror_key, chance_key, angle_key, zoom_key = jax.random.split(key, 4)
    rank = label.ndim
    angles = jax.random.uniform(angle_key, (rank * (rank - 1) // 2,), minval=-1) * rotate_degrees
    factor = jax.random.uniform(zoom_key, minval=1 - zoom, maxval=1 + zoom)
    chosen = jax.random.bernoulli(chance_key, probability)
    matrix = jnp.where(chosen, rotation_matrix(jnp.radians(angles), rank) / factor, jnp.eye(rank))
    chances = jnp.asarray([flip if axis in flip_axes else 0.0 for axis in range(rank)])
    signs = jnp.where(jax.random.bernoulli(mirror_key, chances), -1, 1)
    return affine(image, label, signs[:, None] * matrix, outside)


def image_and_label(
    key: PRNGKeyArray,
    image: Float[Array, "*S C"],
    label: Integer[Array, "*S"],
    settings: Mapping[str, Any],
    outside: int,
) -> tuple[Float[Array, "*S C"], Integer[Array, "*S"]]:
    """Augments an image and its label as `config.augment` says.

    `settings`: flip, flip_axes, spatial (a probability), rotate (degrees), zoom, intensity, noise.
    """
    space, curve, noise = jax.random.split(key, 3)
    image, label = spatial(
        space,
        image,
        label,
        flip=settings["flip"],
        flip_axes=settings["flip_axes"],
        rotate_degrees=settings["rotate"],
        zoom=settings["zoom"],
        probability=settings["spatial"],
        outside=outside,
    )
    image = monotone(curve, image, settings["intensity"])
    return gaussian_noise(noise, image, settings["noise"]), label


def rotation_matrix(angles: Float[Array, " planes"], rank: int) -> Float[Array, "{rank} {rank}"]:
    """The matrix from an output voxel to its source, both relative to the centre.

    `angles` (radians) are those of the plane (0, 1) in 2D, of (0, 1), (0, 2), (1, 2) in 3D. A
    quarter turn equals `np.rot90` in that plane.
    """
    matrix = jnp.eye(rank)
    for plane, angle in zip(itertools.combinations(range(rank), 2), angles, strict=True):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.eye(rank).at[np.ix_(plane, plane)].set(jnp.array([[cos, sin], [-sin, cos]]))
        # By default a TPU rounds the factors to bfloat16, which shifts voxels far from the centre.
        matrix = jnp.matmul(matrix, turn, precision="highest")
    return matrix


def affine(
    image: Float[Array, "*S C"],
    label: Integer[Array, "*S"],
    matrix: Float[Array, "rank rank"],
    outside: int,
) -> tuple[Float[Array, "*S C"], Integer[Array, "*S"]]:
    """Resamples image and label: voxel p comes from matrix @ p, from the centre.

    The image is interpolated linearly with its border repeated; a label is that of the nearest
    voxel, never interpolated, and `outside` beyond the image.
    """
    centre = [(side - 1) / 2 for side in label.shape]
    grid = jnp.meshgrid(
        *(jnp.arange(side) - c for side, c in zip(label.shape, centre, strict=True)),
        indexing="ij",
        sparse=True,
    )
    # Sums and not a matrix product: exact for identity and flips on every device.
    source = [
        c + sum(m * p for m, p in zip(row, grid, strict=True))
        for c, row in zip(centre, matrix, strict=True)
    ]

    def interpolate(channel: Float[Array, "*S"]) -> Float[Array, "*S"]:
        return map_coordinates(channel, source, order=1, mode="nearest")

    moved = jax.vmap(interpolate, in_axes=-1, out_axes=-1)(image)
    return moved, map_coordinates(label, source, order=0, mode="constant", cval=outside)
