"""Input pipeline (Grain): from the prepared data set to batches.

The order of the data is a pure function of (seed, global index): example i of a run is sampled,
cropped and tiled by a generator seeded with (seed, i), and each process takes its share of every
global batch. The number of reader threads or hosts changes nothing, and a resume needs only the
number of the next batch.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypedDict

import grain
import numpy as np

from ssl3d.data import loader, store
from ssl3d.data.loader import BUFFER, Arrays, Parts, Pieces, arrays
from ssl3d.errors import RunError, UserError

# What tasks need of the loader, beside this module's own.
__all__ = ["BUFFER", "Arrays", "Parts", "Pieces", "arrays"]

# Incremented whenever a seed samples other cases or crops than before; runs record it.
DRAW_VERSION = 3
# The label of voxels outside the image: they belong to no class.
OUTSIDE = 255
# More than any run needs.
_EXAMPLES = 2**48


class Subject(TypedDict):
    """Who an example is of: case number, CRC-32 of the case id, subject number, each [] or [B]."""

    case: np.ndarray
    case_key: np.ndarray
    subject: np.ndarray


class Batch(Subject):
    """A training batch; every array of `record`, the task's own, has a leading axis B."""

    record: Arrays


class ValidationBatch(Batch):
    """A batch of validation examples.

    `valid`, bool [B], is false for copies of the last example that fill up the last batch;
    `repeat`, [B], numbers the passes over the cases.
    """

    valid: np.ndarray
    repeat: np.ndarray


class Example(NamedTuple):
    """The input of a task's `record`: one image, or one slice of a volume for a 2D task.

    Attributes:
      image: [*S, C], float16, usually a memory map, of which only slices are read.
      case: the case in the manifest.
      label: [*S], uint8, the label map of the same voxels, if the task needs it.
    """

    image: np.ndarray
    case: store.Case
    label: np.ndarray | None = None


Record = Callable[[np.random.Generator, Example, bool], Parts]


def open_example(
    dataset: store.Dataset,
    case: store.Case,
    rank: int,
    slice_axis: int,
    margin: int,
    rng: np.random.Generator,
    label_map: bool = False,
) -> Example:
    """Opens a case; a 2D task gets a random slice of a volume, from its foreground.

    Args:
      slice_axis: of the volume, in RAS+ (2: axial, 1: coronal, 0: sagittal).
      margin: voxels removed on every side.
      label_map: open the label map too. A slice then comes from anywhere in the volume, as a
        segmentation must be right in all of them.

    Raises:
      UserError: a missing or damaged array, or a margin that leaves nothing.
    """
    image = store.load_image(dataset, case)
    label = store.load_label(dataset, case) if label_map else None
    if rank < dataset.rank:
        extent = case.foreground or tuple((0, side) for side in case.shape)
        first, end = (0, case.shape[slice_axis]) if label_map else extent[slice_axis]
        # The outer tenths of the foreground show little: skin or the tip of an organ.
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
    """A crop of `size` voxels: a random one in training, the central one in validation.

    Args:
      beyond: whether the crop may exceed the image, which is then padded by reflection. Not for
        proxy tasks: the seam reveals the position and the orientation of the crop.

    Returns:
      The crop [*size, C] and its first voxel [r] in the image (negative in the padding).

    Raises:
      ValueError: the image is smaller than the crop and `beyond` is false.
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
    """The first voxel [r] of the crop of `size` inside `shape` whose centre is nearest to `voxel`.

    Along an axis on which the image is smaller, the crop is centred on the image.
    """
    room = np.asarray(shape) - np.asarray(size)
    wanted = np.asarray(voxel) - np.asarray(size) // 2
    return np.where(room >= 0, np.clip(wanted, 0, np.maximum(room, 0)), room // 2)


def cut(
    array: np.ndarray, start: np.ndarray, size: Sequence[int], outside: int | None = None
) -> np.ndarray:
    """The crop of `size` that starts at voxel `start` [r], of an array [*S] or [*S, C].

    Voxels beyond the array are its reflection, or have the value `outside`.
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
        if outside is None:
            return np.pad(part, missing, "symmetric")
        return np.pad(part, missing, constant_values=outside)
    return part


def case_key(case: store.Case) -> int:
    """CRC-32 of the case id, the seed of a case in validation."""
    return zlib.crc32(case.id.encode())


def _subjects(dataset: store.Dataset) -> Callable[[store.Case], Subject]:
    """The function from a case to its numbers."""
    numbers = {case.id: i for i, case in enumerate(dataset.cases)}
    subjects = dataset.subjects()

    def subject(case: store.Case) -> Subject:
        return {
            "case": np.asarray(numbers[case.id], np.int32),
            "case_key": np.asarray(case_key(case), np.uint32),
            "subject": np.asarray(subjects[case.subject], np.int32),
        }

    return subject


@contextlib.contextmanager
def naming(dataset: store.Dataset, case: store.Case) -> Iterator[None]:
    """Names the case in the exceptions of its reader, which may run in a thread.

    Raises:
      RunError: its files cannot be read, or there is not enough memory.
    """
    file = store.image_path(dataset.path, case.id)
    try:
        yield
    except UserError as error:
        if case.id in str(error):
            raise
        raise UserError(f"{file}: {error}") from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RunError(f"case {case.id}: {file} cannot be read ({reason})") from error
    except Exception as error:  # a task's own: its type and traceback are kept
        error.add_note(f"in case {case.id}, {file}")
        raise


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
    buffer: int = BUFFER,
    label_map: bool = False,
    first_batch: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless shuffled batches of this process's share, from global batch `first_batch` on.

    Args:
      batch_size: of the global batch; B is batch_size / processes.
      buffer: bytes of the batches that are read ahead, at least one.
      label_map: whether the task's `record` needs the label map.
      process: (index, count) of the processes that share every global batch.
    """
    index, count = process
    rows = batch_size // count
    subject = _subjects(dataset)

    # Not Grain's shuffle, which takes 9 ms per example of two cases, and 0.7 ms of a hundred.
    @functools.lru_cache(maxsize=16)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(cases))

    def make(number: int, rng: np.random.Generator) -> loader.Sample:
        epoch, position = divmod(number, len(cases))
        case = cases[order(epoch)[position]]
        with naming(dataset, case):
            example = open_example(dataset, case, rank, slice_axis, margin, rng, label_map)
            return loader.sample(record(rng, example, True), subject(case), f"case {case.id}")

    examples = grain.MapDataset.range(_EXAMPLES).seed(seed).random_map(make)

    def example(batch: int, row: int) -> loader.Sample:
        return examples[(batch * count + index) * rows + row]

    return loader.read(example, rows, _EXAMPLES // batch_size, threads, buffer, first_batch)


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
    threads: int,
    buffer: int = BUFFER,
    label_map: bool = False,
    process: tuple[int, int] = (0, 1),
) -> Iterator[ValidationBatch]:
    """Every case `repeats` times, in order; samples depend on (seed, case, repeat) alone."""
    index, count = process
    rows = batch_size // count
    subject = _subjects(dataset)
    examples = repeats * len(cases)

    def make(batch: int, row: int) -> loader.Sample:
        position = (batch * count + index) * rows + row
        repeat, number = divmod(min(position, examples - 1), len(cases))
        case = cases[number]
        rng = np.random.default_rng((seed, case_key(case), repeat))
        with naming(dataset, case):
            example = open_example(dataset, case, rank, slice_axis, margin, rng, label_map)
            valid, repeated = np.asarray(position < examples), np.asarray(repeat, np.uint32)
            own = {**subject(case), "valid": valid, "repeat": repeated}
            return loader.sample(record(rng, example, False), own, f"case {case.id}")

    return loader.read(make, rows, -(-examples // batch_size), threads, buffer)
