"""Grades of whole images from a table: a name and a grade per row.

`images` needs one; for the layouts of volumes, `graded` adds the grades to a listing.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

from ssl3d import documents
from ssl3d.data.layouts.listing import Listing, Problem, SourceCase, class_indices, id_of, name_of
from ssl3d.data.readers.checks import LARGEST_LABEL
from ssl3d.errors import UserError

# Column names of APTOS 2019, EyePACS and IDRiD, and generic ones.
PICTURE_COLUMNS = ("id_code", "image", "image_id", "image name", "id", "filename", "file", "name")
GRADE_COLUMNS = ("diagnosis", "level", "retinopathy grade", "grade", "label", "class", "target")
# Volumes are also named by the person; `participant_id` is BIDS's.
VOLUME_COLUMNS = (
    *PICTURE_COLUMNS,
    *("case", "case_id", "subject", "subject_id", "participant_id", "patient", "patient_id"),
)
# More distinct grades than this, and the column is a measurement.
MOST_GRADES = 64


def graded(listing: Listing, table: Path, classes: dict[int, str] | None) -> Listing:
    """The listing with the grades of a table in place of label maps.

    A row names a case by its id, a person by the subject of all their cases, or a file. A case
    without a row, or with an empty grade, is unlabelled.

    Args:
      table: CSV, or TSV by its suffix.
      classes: grade -> name; None: the grades of the table, numbers or words, in order.

    Raises:
      UserError: the table cannot be read, or its grades are no classes.
    """
    rows = [row for row in read_rows(table, VOLUME_COLUMNS) if row[2]]
    classes = classes or _classes_of(table, [grade for *_, grade in rows])
    problems = list(listing.problems)
    # By the rows of persons, and by those of single cases, which outrank them.
    of_persons, of_cases = dict[str, int](), dict[str, int]()
    for line, name, text in rows:
        value = _value(text, classes)
        cases, own = _named(listing.cases, name)
        found = of_cases if own else of_persons
        what = ""
        if not cases:
            what = f"no case, subject or file called {name}"
        elif value is None:
            what = f"grade {text!r} of {name} is none of {', '.join(map(str, classes))}"
        elif any(found.setdefault(case, value) != value for case in cases):
            what = f"another grade of {name} than in a row before"
        if what:
            problems.append(Problem(f"{table} line {line}", what))
    found = of_persons | of_cases
    indices = class_indices(classes)
    kept = tuple(
        dataclasses.replace(case, grade=indices[found[case.id]] if case.id in found else None)
        for case in listing.cases
    )
    without = [case.id for case in kept if case.grade is None]
    notes = list(listing.notes)
    if without:
        told = f"{len(without)} without a grade in {table.name}; used as unlabelled"
        notes.append(Problem(without[0], f"the first case of {told}"))
    return dataclasses.replace(
        listing, cases=kept, classes=classes, problems=tuple(problems), notes=tuple(notes)
    )


def _value(text: str, classes: dict[int, str]) -> int | None:
    """The grade that a number or the name of a class stands for; None for any other."""
    words = {name.lower(): value for value, name in classes.items()}
    value = int(float(text)) if _is_number(text) else words.get(text.lower())
    return value if value in classes else None


def _named(cases: Sequence[SourceCase], name: str) -> tuple[list[str], bool]:
    """The ids of the cases that a row names, and whether it names a case, not a person."""
    own = id_of(name)
    if any(case.id == own for case in cases):
        return [own], True
    files = [
        case.id
        for case in cases
        if any(name_of(Path(path.name)) == name_of(Path(name)) for path in case.files)
    ]
    if len(files) == 1:
        return files, True
    subjects = {name, own, f"sub-{name}"}
    return [case.id for case in cases if case.subject in subjects], False


def _classes_of(table: Path, grades: Sequence[str]) -> dict[int, str]:
    """The classes of a table: its numbers, or its words in alphabetical order."""
    if not grades:
        raise UserError(f"{table}: every grade is empty")
    if all(map(_is_number, grades)):
        classes = {value: f"grade {value}" for value in sorted({int(float(x)) for x in grades})}
    else:
        classes = dict(enumerate(sorted(set(grades), key=str.lower)))
    if len(classes) > MOST_GRADES or max(classes) > LARGEST_LABEL or min(classes) < 0:
        raise UserError(
            f"{table}: {len(classes)} different grades, {min(classes)} to {max(classes)}: is the "
            "column a measurement? Name the grades with --classes"
        )
    return classes


def _is_number(text: str) -> bool:
    """Whether a grade is a whole number of at most nine digits: "2" or "2.0"."""
    return bool(re.fullmatch(r"[0-9]{1,9}(\.0*)?", text))


def columns(header: Sequence[str], names: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of names and of grades, letter case ignored; None where missing."""
    spelled = {column.strip().lower(): column for column in header}
    name = next((spelled[known] for known in names if known in spelled), None)
    grade = next((spelled[known] for known in GRADE_COLUMNS if known in spelled), None)
    return name, grade


def read_rows(table: Path, names: Sequence[str]) -> list[tuple[int, str, str]]:
    """[(line, name, grade)]. Raises `UserError`: unreadable, a column missing, or no rows."""
    if not table.exists():
        raise UserError(f"--csv={table}: no such file")
    text = documents.read_text(table, "correct the table")
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = reader.fieldnames or []
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{table}: cannot be read as a CSV ({error})") from None
    name, grade = columns(header, names)
    if name is None or grade is None:
        raise UserError(
            f"{table}: needs a column of names ({', '.join(names)}) and one of grades "
            f"({', '.join(GRADE_COLUMNS)}); it has {', '.join(header) or 'nothing'}"
        )
    rows = [(line, (row[name] or "").strip(), (row[grade] or "").strip()) for line, row in lines]
    if not rows:
        raise UserError(f"{table}: no rows below the header")
    return rows
