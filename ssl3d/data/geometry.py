"""Where the voxels are: canonical orientation, crops, resampling, and the way back.

An affine maps voxel indices to mm in RAS+ (x to the Right, y to the Anterior, z Superior); in
pictures it maps (row, column) to pixels. Voxel centres lie on integers, so a grid of n voxels
covers [-0.5, n - 0.5] along its axis.

Two grids of the same image differ by a permutation of axes, flips, a step and an offset per
axis, also where the affine itself is oblique or sheared: resampling is separable and never
rotates. `to_source` brings a prediction on a prepared case back to the file it came from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from nibabel.orientations import io_orientation

from ssl3d.data import store

Order = Literal["nearest", "linear", "cubic"]

# Voxels: how far from integers the map between two grids may be and still be a mere re-indexing.
INDEX_TOLERANCE = 1e-3
# Of the steps between two grids. NIfTI keeps its affine in 7 digits, DICOM in up to 16: rounded,
# the same volume is resampled to the same bytes whichever file it came in.
STEP_DECIMALS = 6
POSITION_DECIMALS = 9


@dataclasses.dataclass(frozen=True)
class Grid:
    """The voxels of an image: `shape` (*S) and `affine` [(r + 1), (r + 1)]."""

    shape: tuple[int, ...]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance in mm between neighbouring voxels along each axis."""
        return spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Distance in mm between neighbouring voxels along each axis."""
    return tuple(float(x) for x in np.sqrt((np.asarray(affine)[:-1, :-1] ** 2).sum(axis=0)))


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes permuted and flipped to lie as close to R, A, S as they can; pictures stay as they are.

    Args:
      array: [*S] or [*S, C].
      affine: [(r + 1), (r + 1)], invertible.

    Returns:
      A view of the array, and its affine.
    """
    rank = len(affine) - 1
    if rank == 2:
        return array, np.asarray(affine, np.float64)
    grid, axes, flips = _canonical(Grid(array.shape[:rank], np.asarray(affine, np.float64)))
    array = np.transpose(array, (*axes, *range(rank, array.ndim)))
    return np.flip(array, [i for i in range(rank) if flips[i]]), grid.affine


def canonical_grid(grid: Grid) -> Grid:
    """The grid that `to_canonical` arrives at."""
    return grid if len(grid.shape) == 2 else _canonical(grid)[0]


def _canonical(grid: Grid) -> tuple[Grid, list[int], list[bool]]:
    """The canonical grid, and per canonical axis the source axis and whether it is flipped."""
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
    """The part of a grid inside `box`, ((start, stop), ...) in voxels."""
    shape = tuple(stop - start for start, stop in box)
    return Grid(shape, _affine(grid, [1.0] * len(box), [float(start) for start, _ in box]))


def target_grid(
    grid: Grid, spacing: Sequence[float] | None = None, size: Sequence[int] | None = None
) -> Grid:
    """The grid to resample to: of a given spacing in mm, or of a given size in voxels.

    A size stretches each axis to fit. A spacing is kept (to a part in a million): the new grid
    is centred on the old one and covers all of it.
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
    """The array on another grid of the same image; what lies outside the array becomes 0.

    Linear and cubic interpolation widen their kernel where the step is longer than a voxel, so
    that fine detail is averaged, not aliased; `nearest` copies values and never blends.

    Args:
      array: [*S] or [*S, C] (with `nearest` of any type, else real numbers).
      affine: of the array.
      target: the new grid.
      order: of the interpolation.

    Returns:
      [*target.shape] or [*target.shape, C]; the array's type with `nearest`, else float32.

    Raises:
      ValueError: the grids are rotated against each other.
    """
    rank = len(target.shape)
    axes, steps, offsets = _axis_maps(np.asarray(affine, np.float64), target.affine)
    array = np.transpose(array, (*axes, *range(rank, array.ndim)))
    # The axis that shrinks most goes first: the others then have less to do.
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
    """Brings an array on a prepared case's grid back to the grid of the case's source file.

    Voxels of the source that the preparation cropped away become 0, the background.

    Args:
      array: [*case.shape] (a label map) or [*case.shape, K] (probabilities).
      case: the prepared case.
      order: `nearest` for label maps; `linear` for probabilities, to be compared afterwards.

    Returns:
      The array on the source's grid, and the source's affine [(r + 1), (r + 1)].
    """
    source = Grid(
        tuple(case.extra["source_shape"]), np.asarray(case.extra["source_affine"], np.float64)
    )
    return resample(array, np.asarray(case.affine), source, order), source.affine


def _axis_maps(
    affine: np.ndarray, target: np.ndarray
) -> tuple[list[int], list[float], list[float]]:
    """Per target axis: the array's axis, and its position = offset + step * target index."""
    rank = len(target) - 1
    voxel = np.linalg.solve(affine, target)
    # Relative to each column, so that a fine grid's small steps are not taken for zeros.
    scaled = np.abs(voxel[:-1, :-1]) / np.abs(voxel[:-1, :-1]).max(axis=0)
    axes = [int(i) for i in scaled.argmax(axis=0)]
    if sorted(axes) != list(range(rank)) or (scaled > INDEX_TOLERANCE).sum() != rank:
        raise ValueError("the grids are rotated against each other")
    steps = [round(float(voxel[axis, i]), POSITION_DECIMALS) for i, axis in enumerate(axes)]
    return axes, steps, [round(float(voxel[axis, -1]), POSITION_DECIMALS) for axis in axes]


def _all_integers(positions: np.ndarray) -> bool:
    return bool(np.all(np.abs(positions - np.rint(positions)) < INDEX_TOLERANCE))


def _pick(array: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """The nearest values along one axis, 0 outside; a view where only a range is asked for."""
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
    """For each position the indices [m, taps] that contribute and their weights [m, taps]."""
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
    # At the border the kernel is cut and renormalised: the border's values go on.
    weights[(indices < 0) | (indices >= length)] = 0
    weights /= weights.sum(axis=1, keepdims=True).clip(min=1e-12)
    weights[~_inside(positions, length)] = 0
    return indices.clip(0, length - 1), weights.astype(np.float32)


def _blend(array: np.ndarray, axis: int, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums along one axis, float32.

    Plane by plane and without BLAS: memory stays at the result plus one plane, and the bytes do
    not depend on the number of threads.
    """
    planes = np.moveaxis(array, axis, 0)
    result = np.zeros((len(indices), *planes.shape[1:]), np.float32)
    product = np.empty(planes.shape[1:], np.float32)
    for i, plane in enumerate(result):
        for index, weight in zip(indices[i], weights[i], strict=True):
            if weight:
                plane += np.multiply(planes[index], weight, out=product, casting="same_kind")
    return np.moveaxis(result, 0, axis)
