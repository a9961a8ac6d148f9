"""Preparation of a whole collection: listed, checked, prepared in parallel, split, written."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from ssl3d.atomic import leftovers
from ssl3d.data import store
from ssl3d.data.layouts import list_cases
from ssl3d.data.layouts import listing as listings
from ssl3d.data.layouts.listing import Listing, Problem, SourceCase
from ssl3d.data.layouts.recognise import recognise
from ssl3d.data.layouts.source import ListingError
from ssl3d.data.preparation import nnunet_export, overview, progress, sizing, splits
from ssl3d.data.preparation.case import PreparationSettings, prepare_case
from ssl3d.data.preparation.options import PreparationOptions, choose_recipe
from ssl3d.data.preparation.progress import PROGRESS
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.data.preparation.workers import Workers, in_parallel
from ssl3d.errors import UserError

# What --on-error=skip does with a faulty label, and how to do without labels.
WITHOUT_LABEL = "skipped, its image becomes unlabelled (--no-labels prepares images alone)"


def prepare(options: PreparationOptions) -> None:
    """Prepares a collection, or only prints the plan. Raises `UserError`, and OSError of the disk.

    A second run into the same folder resumes an interrupted one, or updates a finished one.
    """
    started = time.monotonic()
    if options.output.resolve().is_relative_to(options.source.resolve()):
        raise UserError(f"--output={options.output} lies inside the source; choose another folder")
    workers = options.scheduler or options.workers or os.cpu_count() or 1
    if options.scheduler:
        if options.workers:
            raise UserError("--workers: is of this machine; leave it out, or --scheduler")
        options.output = options.output.resolve()  # workers have other working folders
    layout = options.layout or _recognised(options)
    listing = _listing(layout, options)
    # Before any other error: often they are its cause.
    overview.print_notes(listing.notes)
    overview.print_problems(listing.problems, options.on_error)
    recipe = choose_recipe(options, layout, listing)
    split_file = splits.read_split_file(options.splits) if options.splits else None
    if split_file:
        split_file = splits.by_id(split_file, listing)
        told = len(listing.notes)
        listing = splits.check_split_file(listing, split_file)
        overview.print_notes(listing.notes[told:])
    listing = sizing.complete(listing, recipe.rank, workers)
    settings = sizing.settings_for(listing, recipe, options.source.resolve(), options.output)
    if options.dry_run:
        problems = sizing.print_plan(listing, settings, workers)
        overview.print_problems(problems, options.on_error)
        overview.stop_for_problems([*listing.problems, *problems], options.on_error)
        return
    needed = sizing.bytes_needed(listing, settings, workers)
    sizing.check_disk(options.output, needed)
    result = prepare_all(listing.cases, settings, workers)
    problems = [*listing.problems, *result.problems]
    notes = [
        Problem(case.id, note) for case in result.cases for note in case.extra.get("notes", ())
    ]
    overview.print_notes(notes)
    overview.print_problems(result.problems, options.on_error)
    overview.stop_for_problems(problems, options.on_error)
    if split_file:
        cases = splits.apply_split_file(result.cases, split_file)
    else:
        cases = splits.random_splits(result.cases, dict(recipe.fractions), options.seed)
    cases, leaks, duplicates = without_leaks(cases)
    duplicates += splits.split_notes(cases) if cases else []
    overview.print_notes(duplicates)
    notes += duplicates
    overview.print_problems(leaks, options.on_error)
    overview.stop_for_problems(leaks, options.on_error)
    if not cases:
        raise UserError(f"{options.source}: no case could be prepared")
    dataset = store.Dataset(
        path=options.output,
        name=options.name or listing.name,
        rank=recipe.rank,
        modalities=settings.modalities,
        classes=listings.class_names(listing.classes),
        splits_by=listing.splits_by,
        cases=cases,
        extra={
            "layout": layout,
            "settings": settings.document(),
            "seed": options.seed,
            "splits": split_file.path.name if split_file else dict(recipe.fractions),
        },
    )
    problems += leaks
    overview.write_report(dataset, problems, [*listing.notes, *notes])
    overview.write_contact_sheet(dataset)
    finish(dataset)
    if options.export:
        print(nnunet_export.export(dataset, listing.cases, settings, workers))
    seconds = time.monotonic() - started
    print(overview.summary(dataset, len(problems), result.reused, seconds))


def _recognised(options: PreparationOptions) -> str:
    """The layout of the source, which is printed with what speaks for it. Raises `UserError`."""
    name, evidence = recognise(
        options.source, options.labels, options.images, options.csv, options.follow_links
    )
    print(f"--layout={name}: {evidence}", flush=True)
    return name


def _listing(layout: str, options: PreparationOptions) -> Listing:
    """The listing of the source. Raises `UserError`, after the problems found before."""
    recipe = RECIPES[options.recipe] if options.recipe else None
    try:
        return list_cases(
            layout,
            options.source,
            listings.Options(
                labels=options.labels,
                csv=options.csv,
                modalities=options.modalities,
                classes=options.classes,
                subject_pattern=options.subject_pattern,
                images=options.images,
                follow_links=options.follow_links,
                no_labels=options.no_labels,
                kind="" if recipe is None else recipe.kind,
                rank=None if recipe is None else recipe.rank,
            ),
        )
    except ListingError as error:
        overview.print_notes(error.notes)
        overview.print_problems(error.problems, options.on_error)
        raise


@dataclasses.dataclass(frozen=True)
class Result:
    """Prepared cases, problems of the others, and the number of cases from an earlier run."""

    cases: tuple[store.Case, ...]
    problems: tuple[Problem, ...]
    reused: int


def prepare_all(
    cases: Sequence[SourceCase], settings: PreparationSettings, workers: Workers
) -> Result:
    """Prepares the cases that no earlier run has prepared.

    This process alone records finished cases in `PROGRESS`, so that an interrupted run resumes.
    Cases of a finished data set are kept if their files still have the same checksums.

    Raises:
      UserError: the output folder holds other files, or data prepared with other settings.
    """
    known = progress.known_cases(settings)
    kept = progress.unchanged_cases(cases, known, settings, workers)
    missing = [case for case in cases if case.id not in kept]
    settings.output.mkdir(parents=True, exist_ok=True)
    progress.start(settings, [entry for _, entry in sorted(kept.items())])
    if any(case.id in known for case in missing):
        # The arrays that the manifest describes are about to change.
        (settings.output / store.MANIFEST).unlink(missing_ok=True)
    results = {name: entry.case for name, entry in kept.items()}
    problems: dict[str, Problem] = {}
    with (settings.output / PROGRESS).open("a") as file:
        calls = [(case, settings) for case in missing]
        for index, prepared in in_parallel(prepare_case, calls, workers, "preparing"):
            case = missing[index]
            if isinstance(prepared, UserError):
                problems[case.id] = Problem(case.id, str(prepared))
            else:
                results[case.id] = prepared
                progress.append(file, case, prepared)
                fault = prepared.extra.get("label_problem")
                if fault:
                    problems[case.id] = Problem(case.id, f"{fault}; {WITHOUT_LABEL}")
    return Result(
        cases=tuple(results[name] for name in sorted(results)),
        problems=tuple(problems[case.id] for case in missing if case.id in problems),
        reused=len(kept),
    )


def without_leaks(
    cases: Sequence[store.Case],
) -> tuple[tuple[store.Case, ...], list[Problem], list[Problem]]:
    """The cases without those whose image also occurs in another split.

    Returns:
      The cases, problems (the excluded cases) and notes (duplicates within one split).
    """
    first: dict[str, store.Case] = {}
    problems, notes = [], []
    for case in sorted(cases, key=lambda case: case.id):
        other = first.setdefault(case.extra["content"], case)
        if other is case:
            continue
        same = f"the same image, voxel by voxel, as {other.id}"
        if other.split == case.split:
            notes.append(Problem(case.id, f"{same}; both are in {other.split}"))
        else:
            where = f"but in {case.split} while that one is in {other.split}"
            problems.append(Problem(case.id, f"{same}, {where}; remove one of them"))
    excluded = {problem.name for problem in problems}
    return tuple(case for case in cases if case.id not in excluded), problems, notes


def finish(dataset: store.Dataset) -> None:
    """Writes the manifest, then removes arrays that are not part of it and the progress file."""
    store.write_manifest(dataset)
    ids = {case.id for case in dataset.cases}
    labelled = {case.id for case in dataset.cases if case.labelled}
    for folder, wanted in (("images", ids), ("labels", labelled)):
        for path in (dataset.path / folder).glob("*"):
            if path.name.removesuffix(".npy") not in wanted:
                path.unlink()
    for name in (store.MANIFEST, PROGRESS):
        for path in leftovers(dataset.path / name):
            path.unlink()
    (dataset.path / PROGRESS).unlink(missing_ok=True)
