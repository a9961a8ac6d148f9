"""The crop of a proxy task, fitted to the collection.

A crop that reaches beyond an image would have to be continued, and whatever continues it is a
shortcut: on pure noise a network tells rotations apart by the mirror image at the border. So the
crop of a proxy task shrinks until it lies inside (nearly) all images, and the images that are
smaller still are left out of pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Fit(NamedTuple):
    """A crop and the images that hold it.

    Attributes:
      crop: *S, in voxels, on no axis larger than what was asked for.
      holds: bool [N], whether an image is at least as large as the crop on every axis.
    """

    crop: tuple[int, ...]
    holds: np.ndarray


def fit(
    shapes: np.ndarray,
    wanted: Sequence[int],
    coverage: float,
    *,
    cube: bool = False,
    multiple: int = 1,
    works: Callable[[tuple[int, ...]], bool] = lambda crop: True,
) -> Fit | None:
    """The largest crop that at least a share `coverage` of the images holds.

    Greedy: as long as the images to spare last, the axis grows on which dropping the smallest
    images gains the most voxels per image. Where the result is too small for the task, more images
    are dropped, until the crop works or none is left.

    Args:
      shapes: int [N, r], of the images, in voxels.
      wanted: the crop that is not exceeded, in voxels.
      coverage: in (0, 1].
      cube: whether all sides must be equal.
      multiple: every side is a multiple of it.
      works: whether the task accepts a crop.

    Returns:
      None where no crop works that any image holds.
    """
    limits = np.minimum(shapes, np.asarray(wanted)) // multiple * multiple
    if cube:
        limits = np.broadcast_to(limits.min(axis=1, keepdims=True), limits.shape)
    holds = np.ones(len(limits), bool)
    spare = int((1 - coverage) * len(limits))
    while holds.any():
        crop = limits[holds].min(axis=0)
        best, best_gain = None, 0.0
        for axis in range(limits.shape[1]):
            smaller = holds & (limits[:, axis] == crop[axis])
            rest = holds & ~smaller
            if rest.any():
                growth = _voxels(limits[rest].min(axis=0)) / _voxels(crop)
                gain = np.log(growth) / smaller.sum()
                if gain > best_gain:
                    best, best_gain = rest, gain
        accepted = bool(crop.min() > 0) and works(tuple(int(side) for side in crop))
        if accepted and (best is None or len(limits) - best.sum() > spare):
            return Fit(tuple(int(side) for side in crop), holds)
        if best is None:
            return None
        holds = best
    return None


def _voxels(crop: np.ndarray) -> float:
    return float(np.prod(np.maximum(crop, 0.5)))
