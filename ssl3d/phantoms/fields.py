"""The primitives the built-in subjects are drawn with, for any rank.

A subject is drawn in three moves: take the `coordinates` of the voxels, move them (`pose`,
`deform`) so that a fixed atlas becomes an individual, and evaluate shapes of the atlas there as
signed distances in mm, negative inside. `soft` turns a distance into the share of each voxel that
the shape fills, and `paint` lays that share over the image.

Vocabulary: `r` rank, `*S` spatial. Shapes, `soft` and `paint` also take a bare list of points,
[r, n], so that the details inside a body need not be evaluated in the air around it.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

Scale = float | Sequence[float]  # one number for all axes, or one for each


def coordinates(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Voxel centres as mm from the centre of the field of view, float32 [r, *S]."""
    axes = [
        (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(step)
        for size, step in zip(shape, spacing, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _spline_weights(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Cubic B-spline weights from a grid of nodes `scale` voxels apart, [size, nodes].

    The grid starts at a random phase, and rows have unit norm, so that neither the mean nor the
    variance of interpolated white noise depends on the position.
    """
    position = np.arange(size) / scale + rng.uniform()
    nodes = np.arange(-1, int(position[-1]) + 3)
    distance = np.abs(position[:, None] - nodes)
    weights = np.where(
        distance < 1,
        2 / 3 - distance**2 + distance**3 / 2,
        np.clip(2 - distance, 0, None) ** 3 / 6,
    )
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], scale: Scale) -> np.ndarray:
    """A smooth Gaussian random field of zero mean and unit variance, float32 [*S].

    Mean and variance are those of the ensemble, the same at every voxel. The correlation falls to
    one half at a distance of `scale` voxels (one number, or one per axis; at least 1). The cost is
    that of a few small matrix products, whatever the scale.
    """
    scales = np.broadcast_to(np.asarray(scale, float), (len(shape),))
    weights = [
        _spline_weights(rng, size, max(s, 1.0)) for size, s in zip(shape, scales, strict=True)
    ]
    field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    for matrix in weights:  # each product moves one axis to the back: after r of them all are home
        field = np.tensordot(field, matrix, axes=(0, 1))
    return np.ascontiguousarray(field)


def pose(
    rng: np.random.Generator,
    points: np.ndarray,
    degrees: Scale,
    scaling: Scale,
    shift: Scale,
) -> np.ndarray:
    """Atlas coordinates of `points` [r, *S] for a randomly placed subject, [r, *S].

    Each bound holds for every axis (one number) or per axis, and draws are uniform within it: a
    rotation vector up to +- `degrees` (2D: one angle), sizes between 1 / (1 + `scaling`) and
    1 + `scaling`, a displacement of up to +- `shift` mm. The subject grows, turns, then moves.
    """
    rank = len(points)
    angles = np.deg2rad(np.asarray(degrees)) * rng.uniform(-1, 1, 3 if rank == 3 else 1)
    sizes = (1 + np.asarray(scaling)) ** rng.uniform(-1, 1, rank)
    offset = np.asarray(shift) * rng.uniform(-1, 1, rank)
    rotation = rotation_matrix(*np.rad2deg(angles))
    inverse = (rotation / sizes).T.astype(np.float32)
    return np.tensordot(inverse, points - _column(offset, points), axes=1)


def deform(
    rng: np.random.Generator, points: np.ndarray, amplitude: float, scale: Scale
) -> np.ndarray:
    """`points` [r, *S] displaced by smooth noise: `amplitude` mm (std per axis), `scale` voxels."""
    displacement = [smooth_noise(rng, points.shape[1:], scale) for _ in points]
    return points + np.float32(amplitude) * np.stack(displacement)


def rotation_matrix(*degrees: float) -> np.ndarray:
    """The rotation by one angle (2D) or by a rotation vector of three (3D), [r, r]."""
    if len(degrees) == 3:
        return Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    (angle,) = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def ellipsoid(
    points: np.ndarray,
    centre: Sequence[float],
    radii: Sequence[float],
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """Signed distance to an ellipsoid, [*S] mm: exact at its surface, to first order near it.

    `points` [r, *S], `centre` [r], `radii` [r]; `rotation` [r, r] turns the ellipsoid's own axes
    into the atlas's (see `rotation_matrix`).
    """
    local = points - _column(centre, points)
    if rotation is not None:
        local = np.tensordot(np.asarray(rotation, np.float32).T, local, axes=1)
    local /= _column(radii, points)
    level = _norm(local)
    local /= _column(radii, points)
    slope = _norm(local)
    # The centre itself has slope 0 and lies a smallest radius inside.
    return np.maximum(level * (level - 1) / (slope + np.float32(1e-9)), np.float32(-min(radii)))


def tube(points: np.ndarray, path: Sequence[Sequence[float]], radius: Scale) -> np.ndarray:
    """Signed distance to a tube around a polyline, [*S] mm.

    `points` [r, *S], `path` [P, r] vertices in mm (P >= 2), `radius` one number or one per vertex,
    tapering linearly between vertices.
    """
    path = np.asarray(path, np.float32)
    radii = np.broadcast_to(np.asarray(radius, np.float32), (len(path),))
    distance = None
    for start, end, first, last in zip(path, path[1:], radii, radii[1:], strict=False):
        step = end - start
        local = points - _column(start, points)
        along = np.tensordot(step, local, axes=1) / max(float(step @ step), 1e-9)
        along = np.clip(along, 0, 1)
        for axis, length in enumerate(step):
            local[axis] -= along * length
        piece = _norm(local) - (first + along * (last - first))
        distance = piece if distance is None else np.minimum(distance, piece)
    return distance


def blend(first: np.ndarray, second: np.ndarray, radius: float) -> np.ndarray:
    """Union of two signed distances whose crease is filled with a fillet of `radius` mm, [*S]."""
    overlap = np.maximum(radius - np.abs(first - second), 0)
    return np.minimum(first, second) - overlap**2 / np.float32(4 * radius)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Partial volume: the share of a voxel that lies inside a surface, 0..1, [*S].

    Goes from 1 to 0 linearly over `width` mm centred on the surface; about a voxel is natural,
    more makes a blurred boundary.
    """
    return np.clip(np.float32(0.5) - distance / np.float32(width), 0, 1)


def paint(
    image: np.ndarray, share: np.ndarray, value: float | Sequence[float] | np.ndarray
) -> None:
    """Lay `value` over `image` [C, *S] in place where `share` [*S] says so (0 keeps, 1 replaces).

    `value` is one number, one per channel [C], or a field per channel [C, *S]. Raises ValueError
    for an `image` that is not contiguous in memory.
    """
    inside = np.flatnonzero(share)
    part = share.ravel()[inside]
    value = np.asarray(value, image.dtype)
    field = value.ndim > 1
    target = value.reshape(len(image), -1)[:, inside] if field else value.reshape(-1, 1)
    flat = image.reshape(len(image), -1, copy=False)
    flat[:, inside] += part * (target - flat[:, inside])


def bias_field(rng: np.random.Generator, shape: Sequence[int], strength: float) -> np.ndarray:
    """A multiplicative receive-coil field of random orientation, positive, around 1, [*S].

    `strength` is the standard deviation of its logarithm; it varies over half the field of view.
    """
    half = [max(size / 2, 1.0) for size in shape]
    return np.exp(np.float32(strength) * smooth_noise(rng, shape, half))


def rician(rng: np.random.Generator, image: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """`image` as a magnitude MR image sees it: complex noise of `sigma` added, then its modulus.

    `sigma` is in units of the image and broadcasts against it. The noise is the same everywhere,
    air included, where its mean is 1.25 `sigma`.
    """
    sigma = np.asarray(sigma, np.float32)
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    return np.sqrt((image + real) ** 2 + imaginary**2)


def _column(vector: Sequence[float], points: np.ndarray) -> np.ndarray:
    """A vector [r] that broadcasts against `points` [r, *S]."""
    return np.asarray(vector, np.float32).reshape(-1, *[1] * (points.ndim - 1))


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of vectors [r, *S], [*S]."""
    return np.sqrt(np.einsum("i...,i...->...", vectors, vectors))
