"""Grain: from the prepared store to batches.

The order of the data is a pure function of (seed, global index): example i of the run is drawn,
cropped and tiled with a generator seeded by (seed, i), and a process takes its share of every
global batch. Neither the number of reader threads nor of hosts changes anything, and a resume
needs only the number of the next batch.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from ssl3d.data import store
from ssl3d.errors import UserError

# Raised whenever the same seed draws other cases or crops than before: runs say what they drew.
DRAW_VERSION = 2
# Endless for any run.
_EXAMPLES = 2**48

Batch = dict[str, Any]


class Example(NamedTuple):
    """What a task's `record` gets: one image, or one slice of a volume for a 2D task.

    Attributes:
      image: [*S, C], float16, usually a memory map: only what is sliced is read.
      case: the case in the manifest.
      label: [*S], uint8, the label map of the same voxels, for tasks that ask for it.
    """

    image: np.ndarray
    case: store.Case
    label: np.ndarray | None = None


Record = Callable[[np.random.Generator, Example, bool], dict[str, np.ndarray]]


def open_example(
    dataset: store.Dataset,
    case: store.Case,
    rank: int,
    slice_axis: int,
    margin: int,
    rng: np.random.Generator,
    label_map: bool = False,
) -> Example:
    """Opens a case; a 2D task gets a slice of a volume, drawn from its foreground.

    Args:
      slice_axis: of the volume, in RAS+ (2: axial, 1: coronal, 0: sagittal).
      margin: voxels on every side that are left out.
      label_map: open the label map too. A slice then comes from anywhere in the volume, as a
        prediction has to be right in every one of them.
    """
    image = store.load_image(dataset, case)
    label = store.load_label(dataset, case) if label_map else None
    if rank < dataset.rank:
        extent = case.foreground or tuple((0, side) for side in case.shape)
        first, end = (0, case.shape[slice_axis]) if label_map else extent[slice_axis]
        # The outer tenths of the foreground show little: skin, or the tip of an organ.
        outer = 0 if label_map else (end - first) // 10
        at = int(rng.integers(first + outer, end - outer))
        image = image[(slice(None),) * slice_axis + (at,)]
        label = None if label is None else label[(slice(None),) * slice_axis + (at,)]
    if margin:
        if 2 * margin >= min(image.shape[:-1]):
            raise UserError(
                f"config.data.margin={margin}: leaves nothing of {case.id}, "
                f"which has {image.shape[:-1]} voxels"
            )
        image = image[(slice(margin, -margin),) * rank]
        label = None if label is None else label[(slice(margin, -margin),) * rank]
    return Example(image, case, label)


def crop(
    rng: np.random.Generator,
    image: np.ndarray,
    size: Sequence[int],
    train: bool,
    *,
    beyond: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A crop of `size` voxels, anywhere in training and from the middle in validation.

    Args:
      beyond: whether the crop may be larger than the image, which its mirror image then continues.
        Not for proxy tasks: the seam shows where the crop lies and how it is turned.

    Returns:
      The crop [*size, C] and its first voxel [r] in the image (negative where continued).

    Raises:
      ValueError: the image is smaller than the crop, and `beyond` is false.
    """
    if not beyond and any(s < n for s, n in zip(image.shape, size, strict=False)):
        raise ValueError(f"an image of {image.shape[:-1]} voxels is smaller than the crop {size}")
    room = np.asarray(image.shape[:-1]) - np.asarray(size)
    if train:
        start = np.where(room >= 0, rng.integers(0, np.maximum(room, 0) + 1), room // 2)
    else:
        start = room // 2
    return cut(image, start, size), start.astype(np.int32)


def crop_around(voxel: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The first voxel [r] of the crop of `size` nearest to having `voxel` [r] in its middle.

    Inside an image of `shape`; where the image is smaller, the crop has it in its own middle.
    """
    room = np.asarray(shape) - np.asarray(size)
    wanted = np.asarray(voxel) - np.asarray(size) // 2
    return np.where(room >= 0, np.clip(wanted, 0, np.maximum(room, 0)), room // 2)


def cut(
    array: np.ndarray, start: np.ndarray, size: Sequence[int], outside: int | None = None
) -> np.ndarray:
    """The crop of `size` from voxel `start` [r] on, of an array [*S] or [*S, C].

    What lies beyond the array is its mirror image, or the value `outside`.
    """
    rank = len(size)
    inside = tuple(
        slice(max(a, 0), min(a + side, whole))
        for a, side, whole in zip(start, size, array.shape, strict=False)
    )
    part = np.asarray(array[inside])
    missing = [
        (max(-a, 0), max(a + s - w, 0)) for a, s, w in zip(start, size, array.shape, strict=False)
    ]
    if any(before or after for before, after in missing):
        missing += [(0, 0)] * (array.ndim - rank)
        how = {"mode": "symmetric"} if outside is None else {"constant_values": outside}
        part = np.pad(part, missing, **how)
    return part


def case_key(case: store.Case) -> int:
    """A number that only the case's id decides, for random draws in validation."""
    return zlib.crc32(case.id.encode())


def _labels(dataset: store.Dataset) -> Callable[[store.Case], Batch]:
    """The function that says which case an example is of, in numbers."""
    numbers = {case.id: i for i, case in enumerate(dataset.cases)}
    subjects = dataset.subjects()
    return lambda case: {
        "case": np.int32(numbers[case.id]),
        "case_key": np.uint32(case_key(case)),
        "subject": np.int32(subjects[case.subject]),
    }


def train_batches(
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    record: Record,
    *,
    rank: int,
    slice_axis: int,
    margin: int,
    batch_size: int,
    seed: int,
    threads: int,
    label_map: bool = False,
    first_batch: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless shuffled batches of this process' share, from global batch `first_batch` on.

    Each batch is a dict of arrays with a leading axis of batch_size / processes: `record` (what
    the task's `record` returned), `case` (number in the manifest), `case_key`, `subject`.

    Args:
      label_map: whether the task's `record` gets the label map.
      process: (index, count) of the processes that share every global batch.
    """
    index, count = process
    labels = _labels(dataset)

    # Not Grain's shuffle, whose every draw of two cases takes 9 ms, and of a hundred 0.7 ms.
    @functools.lru_cache(maxsize=16)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(cases))

    def make(number: int, rng: np.random.Generator) -> Batch:
        epoch, position = divmod(number, len(cases))
        case = cases[order(epoch)[position]]
        example = open_example(dataset, case, rank, slice_axis, margin, rng, label_map)
        return {"record": record(rng, example, True)} | labels(case)

    source = (
        grain.MapDataset.range(_EXAMPLES).seed(seed).random_map(make).batch(batch_size // count)
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = iter(source[index::count].to_iter_dataset(options))
    # With threads and no worker processes this is the whole state of the iterator.
    batches.set_state({"next_index": first_batch})
    return batches


def validation_batches(
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    record: Record,
    *,
    rank: int,
    slice_axis: int,
    margin: int,
    batch_size: int,
    repeats: int,
    seed: int,
    label_map: bool = False,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Every case `repeats` times, in order; what is drawn depends on (seed, case, repeat) alone.

    Batches as in `train_batches`, and `valid` bool, false for the repetitions of the last example
    that fill up the last batch, and `repeat`.
    """
    index, count = process
    local = batch_size // count
    labels = _labels(dataset)
    entries = list(itertools.product(range(repeats), cases))
    for start in range(0, len(entries), batch_size):
        rows = []
        for position in range(start + index * local, start + (index + 1) * local):
            repeat, case = entries[min(position, len(entries) - 1)]
            rng = np.random.default_rng((seed, case_key(case), repeat))
            example = open_example(dataset, case, rank, slice_axis, margin, rng, label_map)
            filled = {"valid": np.bool_(position < len(entries)), "repeat": np.uint32(repeat)}
            rows.append({"record": record(rng, example, False)} | labels(case) | filled)
        yield _stack(rows)


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)
