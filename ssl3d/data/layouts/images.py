"""Graded pictures: a CSV with a name and a grade per row, the files anywhere in the tree."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

from ssl3d import documents
from ssl3d.data.layouts import grades
from ssl3d.data.layouts.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    class_indices,
    finish,
    id_of,
    name_of,
)
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import PICTURE_SUFFIXES
from ssl3d.errors import UserError

# Fellow eyes.
EYE = re.compile(r"(.+)_(?:left|right)", re.IGNORECASE)
# The International Clinical Diabetic Retinopathy scale.
DR_GRADES = {0: "no DR", 1: "mild", 2: "moderate", 3: "severe", 4: "proliferative DR"}


def find(folder: Path, options: Options) -> Listing:
    """One case per picture, unlabelled without a row in the table.

    Names like 10_left and 10_right denote the eyes of subject 10. Raises `UserError`.
    """
    source = Source(folder, options.follow_links)
    by_name: dict[str, list[Path]] = {}
    for path in source.files(folder, PICTURE_SUFFIXES):
        by_name.setdefault(name_of(Path(path.name)), []).append(path)
    table = options.csv or _only_table(folder)
    classes = options.classes or DR_GRADES
    indices = class_indices(classes)
    listed: set[str] = set()
    cases: list[SourceCase] = []
    for line, name, grade in grades.read_rows(table, grades.PICTURE_COLUMNS):
        key = name_of(Path(name))
        listed.add(key)
        try:
            checked = _check_row(source, name, grade, by_name.get(key, []), classes)
        except UserError as error:
            source.problem(f"{table} line {line}", str(error))
        else:
            cases.append(_picture(key, by_name[key][0], indices[checked]))
    for key, paths in by_name.items():
        if key not in listed:
            source.note(paths[0], f"no row in {table.name}; used as unlabelled")
            cases += [_picture(key, path) for path in paths]
    eyes = [eye for case in cases if (eye := EYE.fullmatch(case.id))]
    fellows = bool(eyes) and len(eyes) == len(cases)
    if fellows:
        pairs = zip(cases, eyes, strict=True)
        cases = [dataclasses.replace(case, subject=eye[1]) for case, eye in pairs]
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject" if fellows else "case",
        name=folder.resolve().name,
        rank=2,
        modalities=("red", "green", "blue"),
        classes=classes,
    )


def _picture(name: str, path: Path, grade: int | None = None) -> SourceCase:
    case = id_of(name)
    return SourceCase(case, case, ((path,),), grade=grade)


def _check_row(
    source: Source, name: str, grade: str, files: list[Path], classes: dict[int, str]
) -> int:
    """The grade in a row of the table. Raises `UserError`, without naming the row."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} is not a plain file name")
    if not files:
        raise UserError(f"no picture called {name} in {source.folder}")
    if len(files) > 1:
        both = " and ".join(source.relative(path) for path in files[:2])
        raise UserError(f"{name} could be {both}; rename one")
    # "2" or "2.0", of at most nine digits.
    match = re.fullmatch(r"([0-9]{1,9})(\.0*)?", grade)
    if not match:
        raise UserError(f"grade {grade!r} of {name} is not a whole number")
    if int(match[1]) not in classes:
        raise UserError(
            f"grade {grade} of {name} is out of range ({min(classes)} to {max(classes)})"
        )
    return int(match[1])


def _only_table(folder: Path) -> Path:
    """The only CSV of the source with a name and a grade column. Raises `UserError`."""
    tables = _tables(folder)
    if len(tables) != 1:
        what = "no CSV" if not tables else " and ".join(path.name for path in tables)
        raise UserError(
            f"{folder}: {what} with a name and a grade per row; choose one with --csv=FILE "
            f"(columns like {grades.PICTURE_COLUMNS[0]} and {grades.GRADE_COLUMNS[0]})"
        )
    return tables[0]


def _tables(folder: Path) -> list[Path]:
    """The CSVs of the source with a name and a grade column."""
    tables = []
    for path in sorted(folder.glob("*.csv")):
        try:
            text = documents.read_bytes(path, "correct it").decode("utf-8-sig", "replace")
            header = next(csv.reader(io.StringIO(text, newline="")), [])
        except (UserError, csv.Error):
            continue
        if None not in grades.columns(header, grades.PICTURE_COLUMNS):
            tables.append(path)
    return tables


def evidence(found: Survey) -> str:
    """See `recognise`."""
    tables = [found.grades] if found.grades else _tables(found.folder)
    return f"pictures and the grades in {tables[0].name}" if found.pictures and tables else ""
