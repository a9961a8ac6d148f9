"""Plan of a preparation: classes and channels that only the files tell, sizes, disk space."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ssl3d import limits
from ssl3d.data import geometry, readers, store
from ssl3d.data.geometry import Grid
from ssl3d.data.layouts.listing import (
    IGNORED,
    Listing,
    Problem,
    SourceCase,
    class_indices,
    class_names,
)
from ssl3d.data.preparation.case import LabelError, PreparationSettings, check_label_values
from ssl3d.data.preparation.recipes import Recipe
from ssl3d.data.preparation.workers import Workers, in_parallel
from ssl3d.data.readers import checks
from ssl3d.errors import UserError

# More distinct values than this, and a "label" is an image given by mistake.
MAX_CLASSES = 128
# The headers of so many cases are read before worker processes have even started.
FEW_CASES = 500


@dataclasses.dataclass(frozen=True)
class Outline:
    """The properties of a case that its headers tell.

    Attributes:
      grid: of the source, in canonical orientation.
      target: of the prepared image, without cropping.
      channels: of the source.
      voxels: label value -> voxels in the source; None without a label.
    """

    grid: Grid
    target: Grid
    channels: int
    voxels: dict[int, int] | None

    @property
    def bytes(self) -> int:
        """Size of the prepared case: float16 per channel, uint8 for the label."""
        label = 0 if self.voxels is None else 1
        return int(np.prod(self.target.shape)) * (2 * self.channels + label)


def complete(listing: Listing, rank: int, workers: Workers) -> Listing:
    """The listing with its classes (read from all labels) and modalities (from the headers).

    Raises:
      UserError: more label values than a label map has, or values that name no known classes.
    """
    labels = [case.label for case in listing.cases if case.label]
    if listing.classes is None and labels:
        by_label: dict[Path, set[int]] = {}
        calls = [(label, rank) for label in labels]
        for index, found in in_parallel(label_values, calls, workers, "reading labels"):
            # An unreadable label is reported with its case.
            by_label[labels[index]] = set() if isinstance(found, UserError) else set(found)
        values = set().union(*by_label.values())
        if len(values) > MAX_CLASSES:
            raise UserError(
                f"the labels hold {len(values)} different values: are they images? "
                "Name the values with --classes, or prepare the images alone, --no-labels"
            )
        if listing.classes_from is not None:
            names = listing.classes_from(by_label)
        else:
            names = {0: "background"} | {v: f"label {v}" for v in sorted(values) if v != 0}
        listing = dataclasses.replace(listing, classes=names)
    if listing.modalities is None:
        workers = workers if len(listing.cases) > FEW_CASES else 1
        listing = dataclasses.replace(listing, modalities=_channel_names(listing, workers))
    return listing


def _channel_names(listing: Listing, workers: Workers) -> tuple[str, ...]:
    """Names for the channels that most cases have; the larger number of two as frequent ones."""
    calls = [(case, listing.rank) for case in listing.cases]
    found = in_parallel(_channels, calls, workers, "reading headers")
    counts = Counter(number for _, number in found if not isinstance(number, UserError))
    count = max(counts, key=lambda number: (counts[number], number), default=1)
    if listing.rank == 2:
        return ("red", "green", "blue") if count == 3 else ("grey",)
    return tuple(f"channel {i}" for i in range(count)) if count > 1 else ("image",)


def _channels(case: SourceCase, rank: int) -> int:
    """The channels of a case by its headers. Raises `UserError`."""
    return sum(readers.read_header(paths, rank).channels for paths in case.images)


def settings_for(
    listing: Listing, recipe: Recipe, source: Path, output: Path
) -> PreparationSettings:
    """The settings for all cases of a completed listing. Raises `UserError`: too many classes."""
    names = class_names(listing.classes)
    if len(names) > MAX_CLASSES:
        raise UserError(f"{len(names)} classes; a label map holds at most {MAX_CLASSES}")
    values = class_indices(listing.classes)
    modalities = tuple(listing.modalities or ())
    return PreparationSettings(source, output, recipe, modalities, values, len(names))


def outline(case: SourceCase, settings: PreparationSettings, count_labels: bool) -> Outline:
    """Reads the headers of a case and, to count its classes, its label. Raises `UserError`."""
    store.check_id(case.id)
    recipe = settings.recipe
    headers = [readers.read_header(paths, recipe.rank) for paths in case.images]
    grid = geometry.canonical_grid(headers[0].grid)
    target = geometry.target_grid(grid, recipe.spacing, recipe.size)
    channels = sum(header.channels for header in headers)
    voxels = None
    if case.label:
        try:
            voxels = label_values(case.label, recipe.rank) if count_labels else {}
            check_label_values(case.label, voxels, settings.values)
        except UserError as error:
            raise LabelError(str(error)) from None
    return Outline(grid, target, channels, voxels)


def label_values(path: Path, rank: int) -> dict[int, int]:
    """Label value -> number of voxels, of a label file. Raises `UserError`."""
    counts = np.zeros(checks.LARGEST_LABEL + 1, np.int64)
    for plane in readers.read_label(path, rank).array:
        found = np.bincount(plane.ravel())
        counts[: len(found)] += found
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def outlines(
    listing: Listing, settings: PreparationSettings, workers: Workers, count_labels: bool
) -> Iterator[tuple[int, Outline | Problem]]:
    """(index of the case, its outline or its problem), in the order of completion."""
    calls = [(case, settings, count_labels) for case in listing.cases]
    for index, found in in_parallel(outline, calls, workers, "reading headers"):
        if isinstance(found, UserError):
            yield index, Problem(listing.cases[index].id, str(found))
        else:
            yield index, found


def bytes_needed(listing: Listing, settings: PreparationSettings, workers: Workers) -> int:
    """An upper bound for the size of the prepared arrays, without cropping.

    Images stretched to one size need no headers.
    """
    cases = listing.cases
    if settings.recipe.size is not None:
        labels = sum(case.label is not None for case in cases)
        channels = len(settings.modalities)
        return math.prod(settings.recipe.size) * (2 * channels * len(cases) + labels)
    workers = workers if len(cases) > FEW_CASES else 1
    found = [entry for _, entry in outlines(listing, settings, workers, count_labels=False)]
    sizes = [entry.bytes for entry in found if isinstance(entry, Outline)]
    # A larger one is refused, or cropped to less.
    return sum(size for size in sizes if size <= limits.memory_per_file())


def check_disk(output: Path, needed: int) -> None:
    """Raises `UserError` if the disk of `output` has no room for `needed` bytes.

    Arrays of an earlier run in `output` already occupy their share.
    """
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    # Hidden files are partial arrays of a killed run, which are written again.
    needed -= sum(path.stat().st_size for path in output.glob("*/[!.]*.npy"))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{output}: the prepared data need up to {readable_size(needed)}, the disk has "
            f"{readable_size(free)} free; make room or choose another --output"
        )


def readable_size(count: int) -> str:
    """A number of bytes in GB or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def print_plan(listing: Listing, settings: PreparationSettings, workers: Workers) -> list[Problem]:
    """Prints the plan of a run; returns the problems in headers and labels."""
    recipe = settings.recipe
    entries = dict(outlines(listing, settings, workers, count_labels=True))
    names = class_names(listing.classes)
    cases = "1 case" if len(listing.cases) == 1 else f"{len(listing.cases)} cases"
    print(f"{listing.name}: {cases}, channels {', '.join(settings.modalities)}")
    print(f"recipe {recipe.name}: {_description(recipe)}")
    total = 0
    for index, case in enumerate(listing.cases):
        entry = entries[index]
        if isinstance(entry, Problem):
            continue
        total += entry.bytes
        line = (
            f"  {case.id}: {_times(entry.grid.shape)} voxels of "
            f"{_times(round(x, 3) for x in entry.grid.spacing)} mm -> "
            f"{'at most ' if recipe.crop and not recipe.size else ''}{_times(entry.target.shape)}"
        )
        if entry.voxels:
            counts = [0] * len(names)
            for value, count in entry.voxels.items():
                if settings.values[value] != IGNORED:
                    counts[settings.values[value]] += count
            line += "; " + ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True))
        elif case.grade is not None:
            line += f"; grade {case.grade} ({names[case.grade]})"
        print(line)
    print(f"disk space: up to {readable_size(total)} in {settings.output}")
    return [entry for _, entry in sorted(entries.items()) if isinstance(entry, Problem)]


def _times(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _description(recipe: Recipe) -> str:
    steps = [f"crop to the foreground ({recipe.foreground})"] if recipe.crop else []
    if recipe.size:
        steps.append(f"stretch to {_times(recipe.size)} voxels ({recipe.order})")
    elif recipe.spacing:
        steps.append(f"resample to {_times(recipe.spacing)} mm ({recipe.order})")
    window = f" {recipe.window[0]:g} to {recipe.window[1]:g} HU"
    steps.append(f"intensities: {recipe.intensity}{window if recipe.intensity == 'window' else ''}")
    return ", ".join(steps)
