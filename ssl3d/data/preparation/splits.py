"""Splits of a collection: dealt by subject, or as the user's own file says."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ssl3d.data import store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.errors import UserError


def deal(
    cases: Sequence[store.Case], fractions: dict[str, float], seed: int
) -> tuple[store.Case, ...]:
    """The cases with their splits, seeded, whole subjects.

    Subjects with a label or grade are dealt to train, val and test, the others are `unlabelled`.
    Where nothing at all is labelled every subject is dealt: pretraining needs a val split too.

    Args:
      cases: of the collection.
      fractions: of the subjects, "val" and "test".
      seed: of the shuffle.
    """
    labelled = {c.subject for c in cases if c.labelled or c.grade is not None}
    everyone = {c.subject for c in cases}
    splits = store.assign_splits(sorted(labelled or everyone), fractions, seed)
    if labelled:
        rest = store.assign_splits(sorted(everyone - labelled), {}, seed)
        splits |= {subject: ("unlabelled", order) for subject, (_, order) in rest.items()}
    return tuple(_with(case, *splits[case.subject]) for case in cases)


def _with(case: store.Case, split: str, order: int) -> store.Case:
    return dataclasses.replace(case, split=split, order=order)


def read_split_file(path: Path) -> dict[str, str]:
    """The user's splits: case id or subject -> split, in the order of the file.

    Either JSON, `{"train": ["case_1", ...], "val": [...], ...}`, or a CSV with the columns `id`
    (or `subject`) and `split`.

    Raises:
      UserError: unreadable, another structure, an unknown split, or a name in two splits.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such split file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the split file cannot be read ({error})") from None
    pairs = _json_pairs(path, text) if path.suffix == ".json" else _csv_pairs(path, text)
    splits: dict[str, str] = {}
    for name, split in pairs:
        if split not in store.SPLITS:
            raise UserError(
                f"{path}: unknown split {split!r} of {name}; use {', '.join(store.SPLITS)}"
            )
        if splits.setdefault(name, split) != split:
            raise UserError(f"{path}: {name} is in {splits[name]} and in {split}; choose one")
    return splits


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        document = json.loads(text)
        return [(str(name), split) for split, names in document.items() for name in _list(names)]
    except (ValueError, AttributeError, TypeError, RecursionError):
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


def strangers(cases: Sequence[SourceCase], splits: dict[str, str]) -> list[str]:
    """The names of a split file that neither a case nor a subject has."""
    known = {case.id for case in cases} | {case.subject for case in cases}
    return [name for name in splits if name not in known]


def subject_splits(
    cases: Sequence[SourceCase | store.Case], splits: dict[str, str], path: Path
) -> dict[str, str]:
    """Subject -> split, as the user's file says.

    Raises:
      UserError: a case that the file does not name, or a subject that would be in two splits.
    """
    by_subject: dict[str, str] = {}
    for case in cases:
        split = splits.get(case.id, splits.get(case.subject))
        if split is None:
            raise UserError(f"{path}: case {case.id} is in no split; add it, or take it out")
        if by_subject.setdefault(case.subject, split) != split:
            raise UserError(
                f"{path}: subject {case.subject} would be in {by_subject[case.subject]} and in "
                f"{split} (case {case.id}); a subject belongs to one split"
            )
    return by_subject


def apply_split_file(
    cases: Sequence[store.Case], splits: dict[str, str], path: Path
) -> tuple[store.Case, ...]:
    """The cases with the user's splits; within a split subjects rank as the file lists them.

    Raises:
      UserError: as `subject_splits`.
    """
    by_subject = subject_splits(cases, splits, path)
    first: dict[str, int] = {}
    places = {name: place for place, name in enumerate(splits)}
    for case in cases:
        place = places.get(case.id, places.get(case.subject, 0))
        first[case.subject] = min(place, first.get(case.subject, place))
    orders: dict[str, int] = {}
    for split in store.SPLITS:
        members = [subject for subject, own in by_subject.items() if own == split]
        members.sort(key=lambda subject: (first[subject], subject))
        orders |= {subject: order for order, subject in enumerate(members)}
    return tuple(_with(case, by_subject[case.subject], orders[case.subject]) for case in cases)
