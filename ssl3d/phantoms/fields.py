"""Primitives for synthetic images of any rank.

An image is generated in three steps: take the `coordinates` of the voxels; displace them (`pose`,
`deform`), which turns a fixed atlas into an individual; evaluate the shapes of the atlas there as
signed distances in mm, negative inside. `soft` converts a distance to a partial volume, with which
`paint` blends a value into the image.

r is the rank, *S are the spatial axes. Shapes, `soft` and `paint` also accept a list of points
[r, n], so that details inside a body need not be evaluated in the air around it.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

Vector = Sequence[float] | np.ndarray  # one number per axis
Scale = float | Vector  # one number for all axes, or one per axis


def coordinates(shape: Sequence[int], spacing: Vector) -> np.ndarray:
    """Voxel centres as mm from the centre of the field of view, float32 [r, *S]."""
    axes = [
        (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(step)
        for size, step in zip(shape, spacing, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _spline_weights(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Cubic B-spline weights of nodes `scale` voxels apart, [size, nodes].

    The nodes have a random phase and the rows unit norm, so that mean and variance of interpolated
    white noise do not depend on the position.
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

    Mean and variance are ensemble statistics, the same at every voxel. The correlation is one half
    at a distance of `scale` voxels (at least 1). The cost is a few small matrix products at any
    scale.
    """
    scales = np.broadcast_to(np.asarray(scale, float), (len(shape),))
    weights = [
        _spline_weights(rng, size, max(s, 1.0)) for size, s in zip(shape, scales, strict=True)
    ]
    field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    for matrix in weights:  # each product moves one axis to the back; r of them restore the order
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

    All samples are uniform: a rotation vector within +- `degrees` (2D: one angle), scale factors
    from 1 / (1 + `scaling`) to 1 + `scaling`, a displacement within +- `shift` mm. The subject is
    scaled, rotated, then displaced.
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
    """`points` [r, *S] displaced by smooth noise, `amplitude` mm (std) and `scale` voxels."""
    displacement = [smooth_noise(rng, points.shape[1:], scale) for _ in points]
    return points + np.float32(amplitude) * np.stack(displacement)


def rotation_matrix(*degrees: float) -> np.ndarray:
    """The rotation matrix [r, r] of one angle (2D) or of a rotation vector (3D)."""
    if len(degrees) == 3:
        return Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    (angle,) = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def ellipsoid(
    points: np.ndarray,
    centre: Vector,
    radii: Vector,
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """Signed distance to an ellipsoid, [*S] mm: exact on the surface, first order near it.

    `points` [r, *S], `centre` [r], `radii` [r]; `rotation` [r, r] maps the axes of the ellipsoid to
    those of the atlas (see `rotation_matrix`).
    """
    local = points - _column(centre, points)
    if rotation is not None:
        local = np.tensordot(np.asarray(rotation, np.float32).T, local, axes=1)
    local /= _column(radii, points)
    level = _norm(local)
    local /= _column(radii, points)
    slope = _norm(local)
    # The centre has slope 0 and lies inside by the smallest radius.
    return np.maximum(level * (level - 1) / (slope + np.float32(1e-9)), np.float32(-min(radii)))


def tube(
    points: np.ndarray, path: Sequence[Sequence[float]] | np.ndarray, radius: Scale
) -> np.ndarray:
    """Signed distance to a tube around a polyline, [*S] mm.

    `points` [r, *S], `path` [P, r] vertices in mm (P >= 2), `radius` one number or one per vertex,
    linear between vertices.
    """
    vertices = np.asarray(path, np.float32)
    radii = np.broadcast_to(np.asarray(radius, np.float32), (len(vertices),))
    distance = np.array(np.inf, np.float32)
    for start, end, first, last in zip(vertices, vertices[1:], radii, radii[1:], strict=False):
        step = end - start
        local = points - _column(start, points)
        along = np.tensordot(step, local, axes=1) / max(float(step @ step), 1e-9)
        along = np.clip(along, 0, 1)
        for axis, length in enumerate(step):
            local[axis] -= along * length
        piece = _norm(local) - (first + along * (last - first))
        distance = np.minimum(distance, piece)
    return distance


def blend(first: np.ndarray, second: np.ndarray, radius: float) -> np.ndarray:
    """Union of two signed distances with a fillet of `radius` mm in the crease, [*S]."""
    overlap = np.maximum(radius - np.abs(first - second), 0)
    return np.minimum(first, second) - overlap**2 / np.float32(4 * radius)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Partial volume: the fraction of each voxel inside a surface, 0..1, [*S].

    Falls linearly from 1 to 0 over `width` mm across the surface: one voxel for a sharp boundary,
    more for a blurred one.
    """
    return np.clip(np.float32(0.5) - distance / np.float32(width), 0, 1)


def paint(image: np.ndarray, share: np.ndarray, value: Scale) -> None:
    """Blends `value` into `image` [C, *S] in place, with the weights `share` [*S] from 0 to 1.

    `value` is one number, one per channel [C], or a field per channel [C, *S]. Raises ValueError:
    `image` is not contiguous.
    """
    inside = np.flatnonzero(share)
    part = share.ravel()[inside]
    value = np.asarray(value, image.dtype)
    field = value.ndim > 1
    target = value.reshape(len(image), -1)[:, inside] if field else value.reshape(-1, 1)
    flat = image.reshape(len(image), -1, copy=False)
    flat[:, inside] += part * (target - flat[:, inside])


def bias_field(rng: np.random.Generator, shape: Sequence[int], strength: float) -> np.ndarray:
    """A random multiplicative coil sensitivity (bias field), positive, around 1, [*S].

    `strength` is the standard deviation of its logarithm; its scale is half the field of view.
    """
    half = [max(size / 2, 1.0) for size in shape]
    return np.exp(np.float32(strength) * smooth_noise(rng, shape, half))


def rician(rng: np.random.Generator, image: np.ndarray, sigma: float | np.ndarray) -> np.ndarray:
    """The modulus of `image` plus complex Gaussian noise, as in a magnitude MR image.

    `sigma` is in units of the image and broadcasts against it. In air the mean is 1.25 `sigma`.
    """
    sigma = np.asarray(sigma, np.float32)
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    return np.sqrt((image + real) ** 2 + imaginary**2)


def _column(vector: Scale, points: np.ndarray) -> np.ndarray:
    """A vector [r], reshaped to broadcast against `points` [r, *S]."""
    return np.asarray(vector, np.float32).reshape(-1, *[1] * (points.ndim - 1))


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of vectors [r, *S], [*S]."""
    return np.sqrt(np.einsum("i...,i...->...", vectors, vectors))
