"""Patch grids: a crop is cut into N = n^r patches, in rank 2 and 3 alike.

Patches are numbered in C order, the first axis varying slowest: the centre of a 3x3x3 grid is
patch 13, that of a 3x3 grid patch 4.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Int, Shaped

from ssl3d.data.pipeline import Example, Parts, Pieces, crop
from ssl3d.errors import UserError


@dataclasses.dataclass(frozen=True)
class Grid:
    """The geometry of a patch grid over a crop, in voxels.

    Attributes:
      per_side: n, patches along each axis.
      stride: distance between the cells of neighbouring patches, per axis.
      patch: *P, the shape of a patch.
      jitter: the offset of a patch in its cell is sampled from 0..jitter, per axis.
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
        """Grid coordinates of the N patches, in order."""
        return list(itertools.product(range(self.per_side), repeat=self.rank))

    @property
    def rows_apart(self) -> int:
        """The least distance in rows at which no two patches share a voxel."""
        return math.ceil((self.patch[0] + self.jitter) / self.stride[0])


def patch_grid(size: Sequence[int], per_side: int, jitter: int = 0, overlap: int = 0) -> Grid:
    """The grid of `per_side`^r patches over a crop of `size` voxels.

    A cell is (size - overlap) // per_side voxels wide; a patch covers its cell and `overlap` voxels
    of the next one, minus `jitter`. For example, 128 voxels, 3 patches per side and a jitter of 3
    give patches of 39 voxels (Taleb et al. 2020, appendix A).

    Raises:
      UserError: an impossible number, or a crop that is too small.
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


def grid_of(config: ml_collections.ConfigDict) -> Grid:
    """The grid of a config of a task on patches. Raises `UserError`."""
    task = config.task
    return patch_grid(config.data.crop, task.per_side, task.jitter, task.get("overlap", 0))


def encoded_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], ...]:
    """Those of `ssl3d.tasks` for a task on patches: the patch. Raises `UserError`."""
    return (grid_of(config).patch,)


def starts(grid: Grid, rng: np.random.Generator) -> Int[np.ndarray, "N rank"]:
    """First voxel of every patch in the crop, jittered inside the cells."""
    cells = np.asarray(grid.positions) * np.asarray(grid.stride)
    return cells + rng.integers(0, grid.jitter + 1, size=cells.shape)


def cut(
    rng: np.random.Generator, example: Example, size: Sequence[int], grid: Grid, train: bool
) -> Parts:
    """The record of a task on patches: a crop, cut into jittered patches.

    Returns:
      `patches` [N, *P, C] and `starts` int32 [N, rank], the first voxel of each in the whole image.
      Patches that overlap so much that the crop has fewer voxels, and have no jitter, are left to
      `patches_of`; the record then has the crop, `volume` [*size, C].
    """
    image, origin = crop(rng, example.image, size, train)
    at = starts(grid, rng)
    place = {"starts": (origin + at).astype(np.int32)}
    if grid.jitter == 0 and grid.count * math.prod(grid.patch) > math.prod(size):
        return {"volume": image, **place}
    return {"patches": Pieces(image, at, grid.patch), **place}


def patches_of(record: dict[str, Array], grid: Grid) -> Shaped[Array, "N *P C"]:
    """The patches of a record of `cut`, on the device."""
    if "patches" in record:
        return record["patches"]
    crop = record["volume"]
    cells = np.asarray(grid.positions) * np.asarray(grid.stride)
    ends = cells + np.asarray(grid.patch)
    return jnp.stack(
        [crop[tuple(map(slice, at, end))] for at, end in zip(cells, ends, strict=True)]
    )


@dataclasses.dataclass(frozen=True)
class Cut:
    """`cut` as the `record` of a task; equal for tasks that cut the same patches."""

    size: tuple[int, ...]
    grid: Grid

    def __call__(self, rng: np.random.Generator, example: Example, train: bool) -> Parts:
        return cut(rng, example, self.size, self.grid, train)


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """The `record` of a task that sees a sample of the patches of `whole`.

    It has the numbers of these patches too, `chosen` int32 [n]. Where another task's record is
    `whole`, `joint` shares that one's patches, adds `choose(rng)`, and lets the task `take` its
    own.
    """

    whole: Cut
    sample: Callable[[np.random.Generator], Int[np.ndarray, " n"]]

    def choose(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"chosen": self.sample(rng).astype(np.int32)}

    @staticmethod
    def take(record: Mapping[str, Any]) -> dict[str, Any]:
        """This task's record, of that of `whole` with `choose`, on the host or the device."""
        chosen = record["chosen"]
        return {"chosen": chosen} | {key: record[key][chosen] for key in ("patches", "starts")}

    def __call__(self, rng: np.random.Generator, example: Example, train: bool) -> Parts:
        image, origin = crop(rng, example.image, self.whole.size, train)
        at = starts(self.whole.grid, rng)
        chosen = self.choose(rng)
        at = at[chosen["chosen"]]
        patches = Pieces(image, at, self.whole.grid.patch)
        return {"patches": patches, "starts": (origin + at).astype(np.int32), **chosen}
