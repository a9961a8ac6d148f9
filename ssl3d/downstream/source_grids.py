"""Where the voxels of a prepared case lie in the file it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ssl3d.data import geometry, store

# Voxels of the source grid that are resampled at once.
SLAB = 2**22


def source_grid(case: store.Case) -> geometry.Grid | None:
    """The grid of the file that a case was prepared from; None for a phantom."""
    if "source_shape" not in case.extra:
        return None
    shape, affine = case.extra["source_shape"], case.extra["source_affine"]
    return geometry.Grid(tuple(shape), np.asarray(affine, np.float64))


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
    return bool(one_to_one and np.max(deviation) < geometry.INDEX_TOLERANCE)


def to_source_slabs(
    array: np.ndarray, case: store.Case, order: geometry.Order = "linear"
) -> Iterator[tuple[slice, np.ndarray]]:
    """The result of `geometry.to_source`, slab by slab along the first axis, to bound memory.

    Yields:
      (slice along the first axis of the source grid, the array in this slab).

    Raises:
      ValueError: the case is a phantom.
    """
    grid = source_grid(case)
    if grid is None:
        raise ValueError(f"{case.id} has no source file")
    thickness = max(1, SLAB // math.prod(grid.shape[1:]))
    for start in range(0, grid.shape[0], thickness):
        stop = min(start + thickness, grid.shape[0])
        slab = geometry.crop_grid(grid, [(start, stop), *((0, n) for n in grid.shape[1:])])
        yield slice(start, stop), geometry.resample(array, np.asarray(case.affine), slab, order)
