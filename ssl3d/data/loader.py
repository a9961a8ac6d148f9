"""Batches, read ahead in threads: what an example is made of is copied once, into its batch."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

# Bytes of the batches that are read ahead.
BUFFER = 2**29

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """N pieces of an image as an array [N, *size, C] that is copied once, into the batch.

    Attributes:
      image: [*S, C].
      starts: int [N, r], the first voxel of each.
      size: in voxels.

    Raises:
      ValueError: a piece is not inside the image, where slices would wrap around or be broadcast.
    """

    image: np.ndarray
    starts: np.ndarray
    size: tuple[int, ...]

    def __post_init__(self) -> None:
        room = np.subtract(self.image.shape[:-1], self.size)
        if ((self.starts < 0) | (self.starts > room)).any():
            raise ValueError(
                f"pieces of {self.size} voxels beyond an image of {self.image.shape[:-1]}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.starts), *self.size, self.image.shape[-1])

    @property
    def dtype(self) -> np.dtype:
        return self.image.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, out: np.ndarray) -> None:
        """Copies the pieces to `out`."""
        for piece, start in zip(out, self.starts, strict=True):
            here = zip(start, self.size, strict=True)
            piece[...] = self.image[tuple(slice(first, first + side) for first, side in here)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        self.write(out)
        return out if dtype is None else out.astype(dtype)


# What a task's `record` makes of an example. Views of the image are copied into the batch too.
Parts = Mapping[str, np.ndarray | Pieces]


class Sample(NamedTuple):
    """The record of an example, what stands beside it in a batch, and its name for errors."""

    record: Parts
    beside: Parts
    name: str


def arrays(parts: Parts) -> Arrays:
    """A single record with its pieces copied."""
    return {key: np.asarray(part) for key, part in parts.items()}


def sample(record: Mapping[str, Any], beside: Mapping[str, Any], name: str) -> Sample:
    """An example as `read` copies it: without what a memory map costs to slice."""
    one, other = (
        {key: part if isinstance(part, Pieces) else np.asarray(part) for key, part in of.items()}
        for of in (record, beside)
    )
    return Sample(one, other, name)


def read(
    example: Callable[[int, int], Sample],
    rows: int,
    batches: int,
    threads: int,
    buffer: int,
    first: int = 0,
) -> Iterator[Any]:
    """Batches from number `first` on, read ahead in threads.

    A thread makes a whole batch, or a part of it where only a few batches fit in the buffer.

    Args:
      example: (batch, row) -> a `sample`, which is copied once, without the GIL.
      rows: of a batch.
      batches: how many there are.
      buffer: bytes.
    """
    sides = example(first, 0)[:2]
    size = rows * sum(part.nbytes for parts in sides for part in parts.values())
    ahead = max(min(buffer // size, 2 * threads), 1)
    workers = min(threads, ahead)
    helpers = concurrent.futures.ThreadPoolExecutor(threads)

    def make(number: int) -> dict[str, Any]:
        begun = example(number, 0)
        record, beside = (
            {key: np.empty((rows, *part.shape), part.dtype) for key, part in parts.items()}
            for parts in begun[:2]
        )

        def fill(row: int, found: Sample) -> None:
            for parts, batch in zip(found[:2], (record, beside), strict=True):
                _write(parts, batch, row, (found.name, begun.name))

        def make_row(row: int) -> None:
            fill(row, example(number, row))

        fill(0, begun)
        for _ in (helpers.map if workers < threads else map)(make_row, range(1, rows)):
            pass
        return {"record": record, **beside}

    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
    reader = iter(grain.MapDataset.range(batches).map(make).to_iter_dataset(options))
    # With threads and without worker processes this is the whole state of the iterator.
    reader.set_state({"next_index": first})
    yield from reader


def _write(parts: Parts, batch: Arrays, row: int, names: tuple[str, str]) -> None:
    """Copies an example to a row of a batch.

    Args:
      names: of the example, and of the first one of the batch.

    Raises:
      ValueError: the example has another form than the first one.
    """
    for key, part in parts.items():
        out = batch[key][row, ...]
        if part.shape != out.shape or not np.can_cast(part.dtype, out.dtype, "safe"):
            one, other = (
                f"{array.dtype} {array.shape} of {name}"
                for array, name in zip((part, out), names, strict=True)
            )
            raise ValueError(f"{key}: {one}, {other}; all examples must have the same form")
        if isinstance(part, Pieces):
            part.write(out)
        else:
            np.copyto(out, part)
