"""Splits of a collection: random by subject, or from the user's file."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl3d import documents
from ssl3d.data import store
from ssl3d.data.layouts.listing import Listing, Problem, SourceCase, id_of
from ssl3d.errors import UserError

# Subjects in val, beyond which validation needs none of the unlabelled ones.
ENOUGH_TO_VALIDATE = 10


def random_splits(
    cases: Sequence[store.Case], fractions: dict[str, float], seed: int
) -> tuple[store.Case, ...]:
    """The cases with seeded random splits, subject by subject.

    Subjects with a label or grade are assigned to train, val and test, the others to
    `unlabelled`. In a collection without labels all subjects are assigned to train, val and test,
    as pretraining needs a val split too; beside a handful of labelled subjects, val takes some of
    the others for the same reason.

    Args:
      cases: of the collection.
      fractions: shares of the subjects for "val" and "test".
      seed: of the shuffle.
    """
    labelled = {c.subject for c in cases if c.labelled or c.grade is not None}
    everyone = {c.subject for c in cases}
    splits = assign_splits(sorted(labelled or everyone), fractions, seed)
    if labelled:
        rest = assign_splits(sorted(everyone - labelled), {}, seed)
        ranked = sorted(rest, key=lambda subject: rest[subject][1])
        found = sum(split == "val" for split, _ in splits.values())
        share = fractions.get("val", 0.0)
        wanted = min(max(round(share * len(everyone)), share > 0), ENOUGH_TO_VALIDATE)
        # The labelled ones that are left remain to train on.
        extra = min(max(wanted - found, 0), len(ranked))
        splits |= {name: ("val", found + order) for order, name in enumerate(ranked[:extra])}
        splits |= {name: ("unlabelled", order) for order, name in enumerate(ranked[extra:])}
    return tuple(_with(case, *splits[case.subject]) for case in cases)


def split_notes(cases: Sequence[store.Case]) -> list[Problem]:
    """What a training will lack, and the options that help."""
    splits = {case.split for case in cases}
    usable = [case for case in cases if case.labelled or case.grade is not None]
    if "val" not in splits:
        count = len({case.subject for case in cases})
        remedy = "with --val=0.5 --test=0" if count > 1 else "with scans of a second subject"
        return [
            Problem("val", f"no case is in the split val, and training needs one; prepare {remedy}")
        ]
    if usable and not any(case.split == "val" for case in usable):
        subjects = len({case.subject for case in usable})
        remedy = "--val=0.5 --test=0" if subjects > 1 else "more labels"
        what = "1 labelled subject is" if subjects == 1 else f"{subjects} labelled subjects are"
        return [
            Problem(
                "val",
                f"only {what} there, none in the split val: pretraining works, fine-tuning needs "
                f"{remedy}",
            )
        ]
    return []


def _with(case: store.Case, split: str, order: int) -> store.Case:
    return dataclasses.replace(case, split=split, order=order)


def assign_splits(
    subjects: Sequence[str], fractions: dict[str, float], seed: int
) -> dict[str, tuple[str, int]]:
    """Assigns subjects to splits: subject -> (split, rank within the split).

    Seeded, and independent of the order of the subjects. Sizes are the fractions of the number of
    subjects, rounded; with three or more subjects each split of a non-zero fraction has at least
    one. `train` takes the rest.

    Args:
      subjects: names; duplicates count once.
      fractions: shares for "val" and "test", e.g. {"val": 0.2, "test": 0.2}.
      seed: of the shuffle.
    """
    names = sorted(set(subjects))
    # RandomState's stream is frozen by NumPy's policy: the same splits under any version.
    shuffled = [names[i] for i in np.random.RandomState(seed).permutation(len(names))]
    splits: dict[str, tuple[str, int]] = {}
    start = 0
    for split in ("test", "val"):
        share = fractions.get(split, 0.0)
        count = max(round(share * len(names)), 1 if share > 0 and len(names) > 2 else 0)
        for rank, name in enumerate(shuffled[start : start + count]):
            splits[name] = (split, rank)
        start += count
    for rank, name in enumerate(shuffled[start:]):
        splits[name] = ("train", rank)
    return splits


class SplitFile(NamedTuple):
    """The user's splits: case id or subject -> split, in the order of the file at `path`."""

    path: Path
    splits: dict[str, str]


def read_split_file(path: Path) -> SplitFile:
    """Reads the user's splits.

    Either JSON, `{"train": ["case_1", ...], "val": [...], ...}`, or a CSV with the columns `id`
    (or `subject`) and `split`.

    Raises:
      UserError: an unreadable file, another structure, an unknown split, or a name in two splits.
    """
    if not path.exists():
        raise UserError(f"{path}: no such split file")
    text = documents.read_text(path, "correct the split file")
    pairs = _json_pairs(path, text) if path.suffix == ".json" else _csv_pairs(path, text)
    splits: dict[str, str] = {}
    for name, split in pairs:
        if split not in store.SPLITS:
            raise UserError(
                f"{path}: unknown split {split!r} of {name}; use {', '.join(store.SPLITS)}"
            )
        if splits.setdefault(name, split) != split:
            raise UserError(f"{path}: {name} is in {splits[name]} and in {split}; choose one")
    return SplitFile(path, splits)


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        document = documents.parse(text.encode())
        return [(str(name), split) for split, names in document.items() for name in _list(names)]
    except documents.MALFORMED:
        raise UserError(
            f'{path}: not JSON like {{"train": ["case_1"], "val": ["case_2"], "test": []}}'
        ) from None


def _list(names: object) -> list[object]:
    if not isinstance(names, list):
        raise TypeError(names)
    return names


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    rows = csv.DictReader(text.splitlines())
    try:
        columns = rows.fieldnames or []
        key = next((name for name in ("id", "subject") if name in columns), None)
        if key is None or "split" not in columns:
            raise UserError(f"{path}: needs the columns id (or subject) and split, has {columns}")
        return [((row[key] or "").strip(), (row["split"] or "").strip()) for row in rows]
    except csv.Error as error:
        raise UserError(f"{path}: the split file cannot be read ({error})") from None


def by_id(file: SplitFile, listing: Listing) -> SplitFile:
    """The user's splits with names as the files have them replaced by the ids made of these."""
    known = {name for case in listing.cases for name in (case.id, case.subject)}
    splits = {
        id_of(name) if name not in known and id_of(name) in known else name: split
        for name, split in file.splits.items()
    }
    return file._replace(splits=splits)


def check_split_file(listing: Listing, file: SplitFile) -> Listing:
    """The listing, with a note on names in the file that may belong to its invalid cases.

    Called before the preparation, which may take hours.

    Raises:
      UserError: an unknown name in a listing without problems, or as `subject_splits`.
    """
    notes = listing.notes
    known = {name for case in listing.cases for name in (case.id, case.subject)}
    unknown = [name for name in file.splits if name not in known]
    if unknown:
        fault = f"names {unknown[0]!r}, but no case or subject has this name"
        if not listing.problems:
            raise UserError(f"{file.path}: {fault}")
        notes = (*notes, Problem(str(file.path), f"{fault} ({len(unknown)} such names)"))
    subject_splits(listing.cases, file)
    return dataclasses.replace(listing, notes=notes)


def subject_splits(cases: Sequence[SourceCase | store.Case], file: SplitFile) -> dict[str, str]:
    """Subject -> split by the user's file.

    Raises:
      UserError: a case that the file does not name, or a subject in two splits.
    """
    by_subject: dict[str, str] = {}
    for case in cases:
        split = file.splits.get(case.id, file.splits.get(case.subject))
        if split is None:
            raise UserError(
                f"{file.path}: case {case.id} is in no split; add it to the file, or remove it "
                "from the source"
            )
        if by_subject.setdefault(case.subject, split) != split:
            raise UserError(
                f"{file.path}: subject {case.subject} would be in {by_subject[case.subject]} and "
                f"in {split} (case {case.id}); a subject belongs to one split"
            )
    return by_subject


def apply_split_file(cases: Sequence[store.Case], file: SplitFile) -> tuple[store.Case, ...]:
    """The cases with the user's splits; the subjects of a split rank in the order of the file.

    Raises:
      UserError: as `subject_splits`.
    """
    by_subject = subject_splits(cases, file)
    first: dict[str, int] = {}
    places = {name: place for place, name in enumerate(file.splits)}
    for case in cases:
        place = places.get(case.id, places.get(case.subject, 0))
        first[case.subject] = min(place, first.get(case.subject, place))
    orders: dict[str, int] = {}
    for split in store.SPLITS:
        members = [subject for subject, own in by_subject.items() if own == split]
        members.sort(key=lambda subject: (first[subject], subject))
        orders |= {subject: order for order, subject in enumerate(members)}
    return tuple(_with(case, by_subject[case.subject], orders[case.subject]) for case in cases)
