"""Voxel grids: canonical orientation, crops, resampling, and back to the source file.

An affine maps voxel indices to mm in RAS+ (x to the right, y anterior, z superior); for pictures
it maps (row, column) to pixels. Voxel centres lie on integers, so a grid of n voxels covers
[-0.5, n - 0.5] along its axis.

Two grids of one image differ by a permutation of the axes, flips, and a step and an offset per
axis, even if the affine itself is oblique or sheared: resampling is separable and never rotates.
`to_source` resamples a prediction for a prepared case to the grid of its source file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from nibabel.orientations import io_orientation

from ssl3d.data import store

Order = Literal["nearest", "linear", "cubic"]

# Voxels: deviation from integers up to which a map between two grids is a mere re-indexing.
INDEX_TOLERANCE = 1e-3
# Rounding of the steps between two grids. NIfTI stores an affine in 7 digits, DICOM in up to 16;
# rounded, a volume is resampled to the same bytes from either format.
STEP_DECIMALS = 6
POSITION_DECIMALS = 9
# Voxels of the source grid that are resampled at once.
SLAB = 2**22


@dataclasses.dataclass(frozen=True)
class Grid:
    """The voxel grid of an image: `shape` (*S) and `affine` [r + 1, r + 1]."""

    shape: tuple[int, ...]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance in mm between neighbouring voxels along each axis."""
        return spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Distance in mm between neighbouring voxels along each axis."""
    return tuple(float(x) for x in np.sqrt((np.asarray(affine)[:-1, :-1] ** 2).sum(axis=0)))


def corner_distance(shape: Sequence[int], affine: np.ndarray, other: np.ndarray) -> float:
    """The largest distance in mm between the places of a corner voxel by two affines."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(*(2,) * len(shape))], np.float64)
    corners *= [*(n - 1 for n in shape), 1]
    return float(np.linalg.norm(corners @ (affine - other).T, axis=1).max())


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permutes and flips the axes to the orientation closest to RAS+; pictures are unchanged.

    Args:
      array: [*S] or [*S, C].
      affine: [r + 1, r + 1], invertible.

    Returns:
      A view of the array, and its affine.
    """
    rank = len(affine) - 1
    if rank == 2:
        return array, np.asarray(affine, np.float64)
    grid, axes, flips = _canonical(Grid(array.shape[:rank], np.asarray(affine, np.float64)))
    array = np.transpose(array, (*axes, *range(rank, array.ndim)))
    return np.flip(array, tuple(i for i in range(rank) if flips[i])), grid.affine


def canonical_grid(grid: Grid) -> Grid:
    """The grid of the result of `to_canonical`."""
    return grid if len(grid.shape) == 2 else _canonical(grid)[0]


def _canonical(grid: Grid) -> tuple[Grid, list[int], list[bool]]:
    """The canonical grid, and for each of its axes the source axis and whether it is flipped."""
    rank = len(grid.shape)
    orientation = io_orientation(grid.affine)
    axes = [int(np.flatnonzero(orientation[:, 0] == i)[0]) for i in range(rank)]
    flips = [bool(orientation[axis, 1] < 0) for axis in axes]
    source_from_canonical = np.zeros((rank + 1, rank + 1))
    source_from_canonical[rank, rank] = 1
    for i, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        source_from_canonical[axis, i] = -1 if flip else 1
        source_from_canonical[axis, rank] = grid.shape[axis] - 1 if flip else 0
    shape = tuple(grid.shape[axis] for axis in axes)
    return Grid(shape, grid.affine @ source_from_canonical), axes, flips


def crop_grid(grid: Grid, box: Sequence[tuple[int, int]]) -> Grid:
    """The part of a grid in the box ((start, stop), ...), in voxels."""
    shape = tuple(stop - start for start, stop in box)
    return Grid(shape, _affine(grid, [1.0] * len(box), [float(start) for start, _ in box]))


def target_grid(
    grid: Grid, spacing: Sequence[float] | None = None, size: Sequence[int] | None = None
) -> Grid:
    """The grid to resample to: of a given spacing in mm, or of a given size in voxels.

    A size stretches each axis to fit. With a spacing (exact to a millionth), the new grid is
    centred on the old one and covers it.
    """
    if size is not None:
        shape = tuple(int(n) for n in size)
        steps = [n / m for n, m in zip(grid.shape, shape, strict=True)]
    elif spacing is not None:
        steps = [
            round(new / old, STEP_DECIMALS) for new, old in zip(spacing, grid.spacing, strict=True)
        ]
        steps = [1.0 if abs(step - 1) < INDEX_TOLERANCE else step for step in steps]
        shape = tuple(
            max(1, math.ceil(n / step - INDEX_TOLERANCE))
            for n, step in zip(grid.shape, steps, strict=True)
        )
    else:
        return grid
    offsets = [
        (n - 1) / 2 - step * (m - 1) / 2
        for n, m, step in zip(grid.shape, shape, steps, strict=True)
    ]
    return Grid(shape, _affine(grid, steps, offsets))


def _affine(grid: Grid, steps: Sequence[float], offsets: Sequence[float]) -> np.ndarray:
    voxel = np.diag([*steps, 1.0])
    voxel[:-1, -1] = offsets
    return grid.affine @ voxel


def resample(
    array: np.ndarray, affine: np.ndarray, target: Grid, order: Order = "linear"
) -> np.ndarray:
    """The array on another grid of the same image; voxels outside the array become 0.

    Linear and cubic interpolation widen their kernel for steps longer than a voxel, so that fine
    detail is averaged, not aliased; `nearest` copies values.

    Args:
      array: [*S] or [*S, C], of any type with `nearest`, else real numbers.
      affine: of the array.
      target: the new grid.
      order: interpolation.

    Returns:
      [*target.shape] or [*target.shape, C]; the array's type with `nearest`, else float32.

    Raises:
      ValueError: the grids are rotated against each other.
    """
    rank = len(target.shape)
    axes, steps, offsets = _axis_maps(np.asarray(affine, np.float64), target.affine)
    array = np.transpose(array, (*axes, *range(rank, array.ndim)))
    # The axis that shrinks most goes first, which leaves less work for the others.
    for axis in sorted(range(rank), key=lambda i: target.shape[i] / array.shape[i]):
        length, count = array.shape[axis], target.shape[axis]
        positions = offsets[axis] + steps[axis] * np.arange(count)
        if order == "nearest" or _all_integers(positions):
            array = _pick(array, axis, positions)
        else:
            weights = _weights(positions, abs(steps[axis]), length, order)
            array = _blend(array, axis, *weights)
    return array if order == "nearest" else np.asarray(array, np.float32)


def to_source(
    array: np.ndarray, case: store.Case, order: Order = "nearest"
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples an array from the grid of a prepared case to the grid of its source file.

    Voxels that the preparation cropped become 0, the background.

    Args:
      array: [*case.shape] (a label map) or [*case.shape, K] (probabilities).
      case: the prepared case.
      order: `nearest` for label maps, `linear` for probabilities.

    Returns:
      The array on the source grid, and the affine [r + 1, r + 1] of the source.

    Raises:
      ValueError: the case is a phantom, which has no source file.
    """
    grid = _known_source_grid(case)
    return resample(array, np.asarray(case.affine), grid, order), grid.affine


def to_source_slabs(
    array: np.ndarray, case: store.Case, order: Order = "linear"
) -> Iterator[tuple[slice, np.ndarray]]:
    """The result of `to_source`, slab by slab along the first axis, to bound memory.

    Yields:
      (slice along the first axis of the source grid, the array in this slab).

    Raises:
      ValueError: as `to_source`.
    """
    grid = _known_source_grid(case)
    thickness = max(1, SLAB // math.prod(grid.shape[1:]))
    for start in range(0, grid.shape[0], thickness):
        stop = min(start + thickness, grid.shape[0])
        slab = crop_grid(grid, [(start, stop), *((0, n) for n in grid.shape[1:])])
        yield slice(start, stop), resample(array, np.asarray(case.affine), slab, order)


def source_grid(case: store.Case) -> Grid | None:
    """The grid of the file that a case was prepared from; None for a phantom."""
    if "source_shape" not in case.extra:
        return None
    shape, affine = case.extra["source_shape"], case.extra["source_affine"]
    return Grid(tuple(shape), np.asarray(affine, np.float64))


def _known_source_grid(case: store.Case) -> Grid:
    grid = source_grid(case)
    if grid is None:
        raise ValueError(f"{case.id} has no source file")
    return grid


def is_reindexed(case: store.Case) -> bool:
    """Whether the preparation only permuted, flipped or cropped voxels; False for a phantom."""
    source = source_grid(case)
    if source is None:
        return False
    voxel = np.linalg.solve(np.asarray(case.affine), source.affine)
    nearest = np.rint(voxel)
    # A deviation of the step accumulates along the axis.
    deviation = np.abs(voxel - nearest)[:-1] * [*source.shape, 1]
    one_to_one = np.abs(nearest[:-1, :-1]).sum() == len(source.shape)
    return bool(one_to_one and np.max(deviation) < INDEX_TOLERANCE)


def _axis_maps(
    affine: np.ndarray, target: np.ndarray
) -> tuple[list[int], list[float], list[float]]:
    """For each target axis: the array axis, and step and offset of offset + step * index."""
    rank = len(target) - 1
    voxel = np.linalg.solve(affine, target)
    # Relative to each column, so that the small steps of a fine grid do not count as zeros.
    scaled = np.abs(voxel[:-1, :-1]) / np.abs(voxel[:-1, :-1]).max(axis=0)
    axes = [int(i) for i in scaled.argmax(axis=0)]
    if sorted(axes) != list(range(rank)) or (scaled > INDEX_TOLERANCE).sum() != rank:
        raise ValueError("the grids are rotated against each other")
    steps = [round(float(voxel[axis, i]), POSITION_DECIMALS) for i, axis in enumerate(axes)]
    return axes, steps, [round(float(voxel[axis, -1]), POSITION_DECIMALS) for axis in axes]


def _all_integers(positions: np.ndarray) -> bool:
    return bool(np.all(np.abs(positions - np.rint(positions)) < INDEX_TOLERANCE))


def _pick(array: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """The nearest values along one axis, 0 outside; a view for a contiguous range."""
    indices = np.floor(positions + 0.5 + 1e-9).astype(np.int64)
    inside = _inside(positions, array.shape[axis])
    indices = indices.clip(0, array.shape[axis] - 1)
    if inside.all() and np.all(np.diff(indices) == 1):
        return array[(slice(None),) * axis + (slice(indices[0], indices[-1] + 1),)]
    picked = np.take(array, indices, axis)
    picked[(slice(None),) * axis + (~inside,)] = 0
    return picked


def _inside(positions: np.ndarray, length: int) -> np.ndarray:
    return (positions > -0.5 - INDEX_TOLERANCE) & (positions < length - 0.5 + INDEX_TOLERANCE)


def _weights(
    positions: np.ndarray, step: float, length: int, order: Order
) -> tuple[np.ndarray, np.ndarray]:
    """The indices [m, taps] that contribute to each position, and their weights [m, taps]."""
    width = max(1.0, step)
    reach = width * (2 if order == "cubic" else 1)
    first = np.floor(positions - reach).astype(np.int64) + 1
    indices = first[:, None] + np.arange(math.ceil(2 * reach) + 1)
    distance = np.abs(indices - positions[:, None]) / width
    if order == "cubic":
        weights = np.where(
            distance < 1,
            1.5 * distance**3 - 2.5 * distance**2 + 1,
            -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2,
        )
        weights[distance >= 2] = 0
    else:
        weights = np.maximum(0.0, 1 - distance)
    # A kernel that crosses the border is cut and renormalised.
    weights[(indices < 0) | (indices >= length)] = 0
    weights /= weights.sum(axis=1, keepdims=True).clip(min=1e-12)
    weights[~_inside(positions, length)] = 0
    return indices.clip(0, length - 1), weights.astype(np.float32)


def _blend(array: np.ndarray, axis: int, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums along one axis, float32.

    Plane by plane and without BLAS: memory is the result plus one plane, and the bytes do not
    depend on the number of threads.
    """
    planes = np.moveaxis(array, axis, 0)
    result = np.zeros((len(indices), *planes.shape[1:]), np.float32)
    product = np.empty(planes.shape[1:], np.float32)
    for i, plane in enumerate(result):
        for index, weight in zip(indices[i], weights[i], strict=True):
            if weight:
                plane += np.multiply(planes[index], weight, out=product, casting="same_kind")
    return np.moveaxis(result, 0, axis)
