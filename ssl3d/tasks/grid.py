"""Patch grids: how a crop is cut into N = n^r patches, in rank 2 and 3 alike.

Patches are numbered in C order: the first axis varies slowest, so the centre of a 3x3x3 grid is
patch 13 and that of a 3x3 grid patch 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl3d.data.pipeline import Example, crop
from ssl3d.errors import UserError


class Grid(NamedTuple):
    """The geometry of a patch grid over a crop of size *S, all in voxels.

    Attributes:
      per_side: n, patches along each axis.
      stride: distance between the cells of neighbouring patches, per axis.
      patch: *P, the shape of a patch.
      jitter: a patch's offset inside its cell is drawn from 0..jitter, per axis.
    """

    per_side: int
    stride: tuple[int, ...]
    patch: tuple[int, ...]
    jitter: int

    @property
    def rank(self) -> int:
        return len(self.patch)

    @property
    def count(self) -> int:
        return self.per_side**self.rank

    @property
    def positions(self) -> list[tuple[int, ...]]:
        """Grid coordinates of the N patches, in their order."""
        return list(itertools.product(range(self.per_side), repeat=self.rank))

    @property
    def rows_apart(self) -> int:
        """Least distance in rows at which two patches can share no voxel."""
        return math.ceil((self.patch[0] + self.jitter) / self.stride[0])


def patch_grid(size: Sequence[int], per_side: int, jitter: int = 0, overlap: int = 0) -> Grid:
    """The grid of `per_side`^r patches over a crop of `size` voxels.

    A cell is (size - overlap) // per_side wide; a patch covers its cell and `overlap` voxels of
    the next one, less `jitter` voxels of play. So 128 voxels, 3 per side and a jitter of 3 give
    patches of 39 (Taleb et al., appendix A).

    Raises:
      UserError: a number that no grid has, or a crop that is too small for it.
    """
    for key, value, least in (
        ("per_side", per_side, 2),
        ("jitter", jitter, 0),
        ("overlap", overlap, 0),
    ):
        if value < least:
            raise UserError(f"config.task.{key}={value}: must be {least} or more")
    stride = tuple((side - overlap) // per_side for side in size)
    patch = tuple(step + overlap - jitter for step in stride)
    if min(stride) < 1 or min(patch) < 2:
        raise UserError(
            f"config.data.crop={tuple(size)} is too small for {per_side} patches per side with "
            f"config.task.jitter={jitter} and config.task.overlap={overlap}: patches would be "
            f"{patch} voxels"
        )
    return Grid(per_side, stride, patch, jitter)


def starts(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """First voxel of every patch in the crop, int [N, r], jittered inside the cells."""
    cells = np.asarray(grid.positions) * np.asarray(grid.stride)
    return cells + rng.integers(0, grid.jitter + 1, size=cells.shape)


def tile(image: np.ndarray, grid: Grid, at: np.ndarray) -> np.ndarray:
    """Cuts `image` [*S, C] into patches [N, *P, C] that start at the voxels `at` [N, r]."""
    patches = np.empty((len(at), *grid.patch, image.shape[-1]), image.dtype)
    for i, start in enumerate(at):
        patches[i] = image[tuple(slice(a, a + p) for a, p in zip(start, grid.patch, strict=True))]
    return patches


def cut(
    rng: np.random.Generator, example: Example, size: Sequence[int], grid: Grid, train: bool
) -> dict[str, np.ndarray]:
    """The record of a task on patches: crop, then tile with jitter.

    Returns:
      `patches` [N, *P, C] and `starts` int32 [N, r], where each begins in the whole image.
    """
    image, origin = crop(rng, example.image, size, train)
    at = starts(grid, rng)
    return {"patches": tile(image, grid, at), "starts": (origin + at).astype(np.int32)}
