"""From a listing to a plan: classes and channels that only the files tell, sizes, disk space."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ssl3d.data import readers
from ssl3d.data.layouts.listing import Listing, Problem, class_indices, class_names
from ssl3d.data.preparation import collection
from ssl3d.data.preparation.case import Job
from ssl3d.data.preparation.collection import Outline
from ssl3d.data.preparation.recipes import RECIPES, Recipe
from ssl3d.errors import UserError

# More different values than this and a "label" is an image given by mistake.
MAX_CLASSES = 128
# Headers of so many cases are read before worker processes have even started.
FEW_CASES = 500


def suggest_recipe(layout: str, listing: Listing) -> str:
    """The name of the recipe that the layout, the collection's name or its channels suggest.

    Raises:
      UserError: nothing tells the modality.
    """
    for name in ("hippocampus", "pancreas"):
        if name in listing.name.lower() and listing.rank == 3:
            return name
    if layout in RECIPES:
        return layout
    if listing.rank == 2:
        return "retina" if layout == "images" else "picture"
    names = " ".join(listing.modalities or ()).lower()
    if "ct" in names.split():
        return "ct"
    if any(word in names for word in ("mr", "t1", "t2", "flair", "pd", "dwi", "adc")):
        return "mr"
    raise UserError("nothing tells the modality of these images: add --recipe=ct or --recipe=mr")


def complete(listing: Listing, rank: int, workers: int) -> Listing:
    """The listing with its classes (read from all labels) and modalities (from one header).

    Raises:
      UserError: more label values than a label map has.
    """
    labels = [case.label for case in listing.cases if case.label]
    if listing.classes is None and labels:
        values: set[int] = set()
        calls = [(label, rank) for label in labels]
        for _, found in collection.in_parallel(
            collection.label_values, calls, workers, "reading labels"
        ):
            # A label that cannot be read is reported with its case.
            values |= set() if isinstance(found, UserError) else set(found)
        if len(values) > MAX_CLASSES:
            raise UserError(
                f"the labels hold {len(values)} different values: are they images? "
                "Name the values with --classes"
            )
        names = {0: "background"} | {v: f"label {v}" for v in sorted(values) if v != 0}
        listing = dataclasses.replace(listing, classes=names)
    if listing.modalities is None:
        listing = dataclasses.replace(listing, modalities=_channel_names(listing))
    return listing


def _channel_names(listing: Listing) -> tuple[str, ...]:
    """Names for the channels that the first readable case has."""
    for case in listing.cases:
        try:
            headers = [readers.read_header(paths, listing.rank) for paths in case.images]
        except UserError:
            continue
        count = sum(header.channels for header in headers)
        if listing.rank == 2:
            return ("red", "green", "blue") if count == 3 else ("grey",)
        return tuple(f"channel {i}" for i in range(count)) if count > 1 else ("image",)
    return ("image",)


def job_of(listing: Listing, recipe: Recipe, source: Path, output: Path) -> Job:
    """What all cases of a completed listing share. Raises `UserError` for too many classes."""
    names = class_names(listing.classes)
    if len(names) > MAX_CLASSES:
        raise UserError(f"{len(names)} classes; a label map holds at most {MAX_CLASSES}")
    values = class_indices(listing.classes)
    return Job(source, output, recipe, tuple(listing.modalities or ()), values, len(names))


def outlines(
    listing: Listing, job: Job, workers: int, count_labels: bool
) -> Iterator[tuple[int, Outline | Problem]]:
    """(index of the case, its outline or what is wrong with it), as they come."""
    calls = [(case, job, count_labels) for case in listing.cases]
    for index, found in collection.in_parallel(
        collection.outline, calls, workers, "reading headers"
    ):
        if isinstance(found, UserError):
            found = Problem(listing.cases[index].id, str(found))
        yield index, found


def bytes_needed(listing: Listing, job: Job, workers: int) -> int:
    """An upper bound for the prepared arrays, nothing cropped away.

    Of images stretched to one size, all are alike and no header needs to be read.
    """
    cases = listing.cases
    if job.recipe.size is not None:
        voxels = 1
        for side in job.recipe.size:
            voxels *= side
        labels = sum(case.label is not None for case in cases)
        return voxels * (2 * len(job.modalities) * len(cases) + labels)
    workers = workers if len(cases) > FEW_CASES else 1
    found = [entry for _, entry in outlines(listing, job, workers, count_labels=False)]
    return sum(entry.bytes for entry in found if isinstance(entry, Outline))


def print_plan(listing: Listing, job: Job, workers: int) -> list[Problem]:
    """Prints what a run would do; returns the problems that headers and labels show."""
    recipe = job.recipe
    entries = dict(outlines(listing, job, workers, count_labels=True))
    names = class_names(listing.classes)
    print(f"{listing.name}: {len(listing.cases)} cases, channels {', '.join(job.modalities)}")
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
                counts[job.values[value]] += count
            line += "; " + ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True))
        elif case.grade is not None:
            line += f"; grade {case.grade} ({names[case.grade]})"
        print(line)
    print(f"disk space: up to {collection.gigabytes(total)} in {job.output}")
    return [entry for _, entry in sorted(entries.items()) if isinstance(entry, Problem)]


def _times(numbers: object) -> str:
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
