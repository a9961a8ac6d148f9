"""Prepares a collection of images for training: reads, checks, crops, resamples, normalises.

    python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus --output=data/hippocampus
    python -m ssl3d.prepare --layout=dicom --source=SCANS --output=OUT --recipe=ct --dry-run

Layouts, recipes and the format of the result are described in docs/data.md. Run again after an
interruption, it goes on with the missing cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl3d.cli import Parser, run
from ssl3d.data import store
from ssl3d.data.layouts import LAYOUTS, list_cases
from ssl3d.data.layouts.listing import Listing, Options, Problem, class_names
from ssl3d.data.preparation import collection, overview, sizing, splits
from ssl3d.data.preparation.recipes import RECIPES, Recipe
from ssl3d.errors import UserError

NOTES_SHOWN = 20
LARGEST_SEED = 2**32 - 1


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="python -m ssl3d.prepare", description=__doc__)
    add = result.add_argument
    add("--layout", required=True, choices=sorted(LAYOUTS), help="how the files are arranged")
    add("--source", required=True, type=Path, help="folder of the collection")
    add("--output", required=True, type=Path, help="folder of the prepared data set")
    add("--recipe", choices=sorted(RECIPES), help="default: what the layout and name suggest")
    add("--name", help="of the data set; default: the collection's")
    add("--labels", type=Path, metavar="DIR", help="folder of labels beside the images")
    add("--csv", type=Path, metavar="FILE", help="grades of pictures; default: the one CSV there")
    add("--modalities", type=_names, metavar="A,B", help="names of the channels, in order")
    add("--classes", type=_classes, metavar="0:background,1:liver", help="label values and names")
    add("--spacing", type=_numbers, metavar="X,Y,Z", help="mm to resample to, or one number")
    add("--size", type=_sizes, metavar="X,Y,Z", help="voxels to stretch to, or one number")
    add("--crop", choices=("yes", "no"), help="crop to the foreground")
    add("--order", choices=("linear", "cubic"), help="interpolation of the image")
    add("--intensity", choices=("window", "zscore", "minmax", "picture"), help="normalisation")
    add("--window", type=_numbers, metavar="LOW,HIGH", help="HU, for --intensity=window")
    add("--splits", type=Path, metavar="FILE", help="your own splits, JSON or CSV")
    add("--val", type=_fraction, metavar="F", help="share of the subjects for validation")
    add("--test", type=_fraction, metavar="F", help="share of the subjects for the test")
    add("--seed", type=_seed, default=0, help="of the splits (default 0)")
    add("--subject-pattern", metavar="REGEX", help="its group 1, in the case id, is the subject")
    add("--workers", type=_count, default=os.cpu_count(), help="processes (default: all cores)")
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip leaves bad cases out")
    add("--dry-run", action="store_true", help="print the plan and stop")
    return result


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError("names with commas between them are needed")
    return names


def _numbers(text: str, kind: type = float) -> tuple[float, ...]:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError("numbers with commas between them are needed")
    return values


def _sizes(text: str) -> tuple[int, ...]:
    return _numbers(text, int)


def _one(text: str, kind: type, low: float, high: float, what: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} {what}")
    return value


def _fraction(text: str) -> float:
    return _one(text, float, 0, math.nextafter(1, 0), "is not a number between 0 and 1")


def _count(text: str) -> int:
    return _one(text, int, 1, math.inf, "is not a whole number of at least 1")


def _seed(text: str) -> int:
    return _one(text, int, 0, LARGEST_SEED, f"is not a whole number of 0 to {LARGEST_SEED}")


def _classes(text: str) -> dict[int, str]:
    pairs = [part.partition(":") for part in text.split(",")]
    try:
        classes = {int(value): name.strip() for value, _, name in pairs}
    except ValueError:
        classes = {}
    if len(classes) < len(pairs) or not all(classes.values()):
        raise argparse.ArgumentTypeError("write 0:background,1:organ, each value once")
    return classes


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    try:
        prepare(options)
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or options.output
        # NumPy's error on a full disk has no system error, only how many bytes were written.
        reason = error.strerror or f"{error}, is the disk full?"
        raise UserError(f"{where}: {reason}; mend that and run again") from None


def prepare(options: argparse.Namespace) -> None:
    """Lists, plans and prepares. Raises `UserError`, and OSError where the disk does."""
    started = time.monotonic()
    if options.output.resolve().is_relative_to(options.source.resolve()):
        raise UserError(f"--output={options.output} lies inside the source; choose another place")
    listing = list_cases(
        options.layout,
        options.source,
        Options(
            options.labels,
            options.csv,
            options.modalities,
            options.classes,
            options.subject_pattern,
        ),
    )
    recipe = choose_recipe(options, listing)
    wanted = None
    if options.splits:
        wanted = splits.read_split_file(options.splits)
        listing = check_split_file(listing, wanted, options.splits)
    print_notes(listing.notes)
    listing = sizing.complete(listing, recipe.rank, options.workers)
    job = sizing.job_of(listing, recipe, options.source.resolve(), options.output)
    if options.dry_run:
        problems = sizing.print_plan(listing, job, options.workers)
        report_problems([*listing.problems, *problems], options.on_error)
        return
    collection.check_disk(options.output, sizing.bytes_needed(listing, job, options.workers))
    result = collection.prepare_all(listing.cases, job, options.workers)
    problems = [*listing.problems, *result.problems]
    report_problems(problems, options.on_error)
    cases = result.cases
    if wanted is None:
        cases = splits.deal(cases, dict(recipe.fractions), options.seed)
    else:
        cases = splits.apply_split_file(cases, wanted, options.splits)
    cases, doubles, notes = without_doubles(cases)
    print_notes(notes)
    report_problems(doubles, options.on_error)
    if not cases:
        raise UserError(f"{options.source}: no case could be prepared")
    dataset = store.Dataset(
        path=options.output,
        name=options.name or listing.name,
        rank=recipe.rank,
        modalities=job.modalities,
        classes=class_names(listing.classes),
        splits_by=listing.splits_by,
        cases=cases,
        extra={
            "layout": options.layout,
            "settings": collection.settings_of(job),
            "seed": options.seed,
            "splits": options.splits.name if options.splits else dict(recipe.fractions),
        },
    )
    problems += doubles
    overview.write_report(dataset, problems, [*listing.notes, *notes])
    overview.write_contact_sheet(dataset)
    collection.finish(dataset)
    print(summary(dataset, len(problems), result.reused, time.monotonic() - started))


def choose_recipe(options: argparse.Namespace, listing: Listing) -> Recipe:
    """The recipe by name or by what the collection is, with the options' changes.

    Raises:
      UserError: nothing tells the modality, or an option that does not fit the recipe.
    """
    recipe = RECIPES[options.recipe or sizing.suggest_recipe(options.layout, listing)]
    kinds = {2: "pictures", 3: "volumes"}
    if recipe.rank != listing.rank:
        raise UserError(
            f"--recipe={recipe.name} is for {kinds[recipe.rank]}, but {options.source} holds "
            f"{kinds[listing.rank]}"
        )
    if options.spacing and options.size:
        raise UserError("--spacing and --size exclude each other: a size stretches the image")
    changes: dict[str, object] = {}
    for option in ("spacing", "size"):
        values = getattr(options, option)
        if values is not None:
            values = values * recipe.rank if len(values) == 1 else values
            if len(values) != recipe.rank or min(values) <= 0:
                raise UserError(f"--{option}: give one or {recipe.rank} positive numbers")
            changes |= {"spacing": None, "size": None, option: values}
    if options.crop:
        changes["crop"] = options.crop == "yes"
    if options.window:
        if len(options.window) != 2 or options.window[0] >= options.window[1]:
            raise UserError("--window: give two HU values, the lower one first")
        changes["window"] = options.window
    for option in ("order", "intensity"):
        if getattr(options, option):
            changes[option] = getattr(options, option)
    fractions = dict(recipe.fractions)
    for split in ("val", "test"):
        if getattr(options, split) is not None:
            fractions[split] = getattr(options, split)
    if sum(fractions.values()) >= 1:
        raise UserError("--val and --test together leave nothing to train on")
    return dataclasses.replace(recipe, fractions=tuple(fractions.items()), **changes)


def check_split_file(listing: Listing, wanted: dict[str, str], path: Path) -> Listing:
    """The listing, with a note where the file names cases that could not be listed.

    Done before anything is prepared, as preparing may take hours. Raises `UserError`.
    """
    notes = listing.notes
    strangers = splits.strangers(listing.cases, wanted)
    if strangers:
        first = f"names {strangers[0]!r}, but no case or subject is called so"
        if not listing.problems:
            raise UserError(f"{path}: {first}")
        notes = (*notes, Problem(str(path), f"{first} ({len(strangers)} such names)"))
    splits.subject_splits(listing.cases, wanted, path)
    return dataclasses.replace(listing, notes=notes)


def without_doubles(
    cases: Sequence[store.Case],
) -> tuple[tuple[store.Case, ...], list[Problem], list[Problem]]:
    """The cases without those that hold the same image as one of another split.

    Returns:
      The cases, problems (the cases left out) and notes (the same image twice in one split).
    """
    problems, notes = [], []
    for first, second in collection.duplicates(cases):
        same = f"the same image, voxel by voxel, as {first.id}"
        if first.split == second.split:
            notes.append(Problem(second.id, f"{same}; both are in {first.split}"))
        else:
            where = f"but in {second.split} while that one is in {first.split}"
            problems.append(Problem(second.id, f"{same}, {where}; remove one of them"))
    left_out = {problem.name for problem in problems}
    return tuple(case for case in cases if case.id not in left_out), problems, notes


def print_notes(notes: Sequence[Problem]) -> None:
    """The first notes, one per line; all of them are in the report."""
    for note in notes[:NOTES_SHOWN]:
        print(" ".join(f"note: {note.name}: {note.reason}".split()), file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        more = len(notes) - NOTES_SHOWN
        print(f"note: {more} more like these, see {overview.REPORT}", file=sys.stderr)


def report_problems(problems: Sequence[Problem], on_error: str) -> None:
    """Prints each problem on its line; unless they are to be skipped, ends the run.

    Raises:
      UserError: there are problems and `on_error` is "stop".
    """
    word = "error" if on_error == "stop" else "left out"
    for problem in problems:
        print(" ".join(f"{word}: {problem.name}: {problem.reason}".split()), file=sys.stderr)
    if problems and on_error == "stop":
        what = "one case" if len(problems) == 1 else f"{len(problems)} cases"
        raise UserError(
            f"{what} cannot be prepared, see above; mend and run again (finished cases are kept), "
            "or add --on-error=skip"
        )


def summary(dataset: store.Dataset, left_out: int, reused: int, seconds: float) -> str:
    """The last line of a run."""
    counts = Counter(case.split for case in dataset.cases)
    parts = [f"{split} {counts[split]}" for split in store.SPLITS if counts[split]]
    cases = "1 case" if len(dataset.cases) == 1 else f"{len(dataset.cases)} cases"
    line = f"{dataset.path}: {cases} ({', '.join(parts)}; "
    line += f"splits by {dataset.splits_by})"
    if dataset.splits_by == "case":
        line += ", as the source has no subject ids"
    if reused:
        line += f"; {reused} were there already"
    if left_out:
        line += f"; {left_out} left out, see {overview.REPORT}"
    return f"{line}; {seconds:.1f} s"


if __name__ == "__main__":
    run(main)
