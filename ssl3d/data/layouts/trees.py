"""Layouts that take any tree of files: volumes or pictures, DICOM series, graded pictures."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl3d.data.layouts.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    class_indices,
    finish,
    id_of,
)
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, dicom, stem, suffix
from ssl3d.errors import UserError

# Endings that people add to the names of label files.
LABEL_ENDING = re.compile(r"[._-](label|labels|seg|segmentation|mask|gt)$", re.IGNORECASE)
# Columns of the usual CSV files: APTOS 2019, EyePACS, IDRiD, and plain words.
ID_COLUMNS = ("id_code", "image", "image_id", "image name", "id", "filename", "file", "name")
GRADE_COLUMNS = ("diagnosis", "level", "retinopathy grade", "grade", "label", "class")
# Two eyes of one person.
EYE = re.compile(r"(.+)_(?:left|right)", re.IGNORECASE)
# The International Clinical Diabetic Retinopathy scale.
DR_GRADES = {0: "no DR", 1: "mild", 2: "moderate", 3: "severe", 4: "proliferative DR"}


def folder(place: Path, options: Options) -> Listing:
    """Any tree of volumes or of pictures; labels in a second tree with the same names.

    The label tree is `--labels`, or `labels/` beside `images/`.
    """
    source = Source(place)
    images, labels = place, options.labels
    if labels is None and (place / "images").is_dir() and (place / "labels").is_dir():
        images, labels = place / "images", place / "labels"
    files = [
        path
        for path in source.files(images, VOLUME_SUFFIXES + PICTURE_SUFFIXES)
        if labels is None or not path.is_relative_to(labels)
    ]
    volumes = [path for path in files if suffix(path) in VOLUME_SUFFIXES]
    if volumes and len(volumes) < len(files):
        picture = next(path for path in files if path not in volumes)
        raise UserError(
            f"{place}: holds volumes ({volumes[0].name}) and pictures ({picture.name}); "
            "give a folder with one kind"
        )
    by_name = {id_of(path.relative_to(images)): path for path in files}
    found = _labels(source, labels)
    if labels is not None:
        for name in sorted(set(by_name) - set(found)):
            source.note(by_name[name], "no label of that name; used as unlabelled")
    for name in sorted(set(found) - set(by_name)):
        source.problem(found[name], "a label without an image of that name")
    cases = []
    for path in files:
        name = id_of(path.relative_to(images))
        cases.append(SourceCase(name, name, ((path,),), found.get(name)))
    return finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=place.resolve().name,
        rank=3 if volumes else 2,
        modalities=None,
        classes=None,
    )


def _labels(source: Source, folder_: Path | None) -> dict[str, Path]:
    """Case id -> label file; a label folder outside the source is a source of its own."""
    if folder_ is None:
        return {}
    found: dict[str, Path] = {}
    for path in source.holding(folder_).files(folder_, VOLUME_SUFFIXES + PICTURE_SUFFIXES):
        source.put(found, LABEL_ENDING.sub("", id_of(path.relative_to(folder_))), path)
    return found


def dicom_tree(place: Path, options: Options) -> Listing:
    """A tree of DICOM series: one folder per series, or one multi-frame file per volume."""
    source = Source(place)
    series, strangers = _find_series(source, place, options.labels)
    if strangers:
        source.note(place, f"{len(strangers)} files are no DICOM images (first: {strangers[0]})")
    modalities = Counter(info.modality for _, info, _ in series)
    usual = modalities.most_common(1)[0][0] if modalities else ""
    labels = _labels(source, options.labels)
    cases = []
    for where, info, files in series:
        name = id_of(source.relative(where)) if where != place else id_of(info.patient or "case")
        if info.modality != usual:
            source.problem(where, f"modality {info.modality}, while most series are {usual}")
            continue
        cases.append(
            SourceCase(name, info.patient or name, (tuple(files),), labels.pop(name, None))
        )
    for path in labels.values():
        source.problem(path, "a label without a series of that name")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject" if all(info.patient for _, info, _ in series) else "case",
        name=place.resolve().name,
        rank=3,
        modalities=(usual or "image",),
        classes=None,
    )


def _find_series(
    source: Source, place: Path, labels: Path | None
) -> tuple[list[tuple[Path, dicom.SeriesInfo, list[Path]]], list[str]]:
    """[(folder or multi-frame file, what it is, files)], and the files that are something else."""
    folders: dict[Path, dict[str, tuple[dicom.SeriesInfo, list[Path]]]] = {}
    found: list[tuple[Path, dicom.SeriesInfo, list[Path]]] = []
    strangers = []
    for path in source.files(place):
        if labels is not None and path.is_relative_to(labels):
            continue
        try:
            info = dicom.read_info(path)
        except UserError as error:
            source.problem(path, str(error).removeprefix(f"{path}: "))
            continue
        if info is None or info.frames == 0:
            strangers.append(source.relative(path))
        elif info.frames > 1:
            found.append((path, info, [path]))
        else:
            series = folders.setdefault(path.parent, {})
            series.setdefault(info.series, (info, []))[1].append(path)
    for where, series in folders.items():
        if len(series) > 1:
            what = ", ".join(
                f"{info.description or info.series or 'no UID'} ({len(files)} slices)"
                for info, files in series.values()
            )
            source.problem(where, f"{len(series)} series in one folder: {what}; one folder each")
            continue
        found += [(where, info, files) for info, files in series.values()]
    return sorted(found, key=lambda entry: entry[0]), strangers


def images(place: Path, options: Options) -> Listing:
    """Graded pictures: a CSV with a name and a grade per row, the files anywhere in the tree.

    Pictures without a row are unlabelled. Names like 10_left and 10_right are eyes of subject 10.
    """
    source = Source(place)
    by_name: dict[str, list[Path]] = {}
    for path in source.files(place, PICTURE_SUFFIXES):
        by_name.setdefault(stem(path), []).append(path)
    table = options.csv or _only_table(place)
    classes = options.classes or DR_GRADES
    indices = class_indices(classes)
    named = set()
    cases = []
    for line, name, grade in _rows(table):
        key = stem(Path(name))
        named.add(key)
        wrong = _wrong_row(source, name, grade, by_name.get(key, []), classes)
        if wrong:
            source.problem(f"{table} line {line}", wrong)
        else:
            cases.append(_picture(key, by_name[key][0], indices[_grade(grade)]))
    for key, paths in by_name.items():
        if key not in named:
            source.note(paths[0], f"no row in {table.name}; used as unlabelled")
            cases += [_picture(key, path) for path in paths]
    eyes = [EYE.fullmatch(case.id) for case in cases]
    fellows = bool(eyes) and all(eyes)
    if fellows:
        pairs = zip(cases, eyes, strict=True)
        cases = [dataclasses.replace(case, subject=eye[1]) for case, eye in pairs]
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject" if fellows else "case",
        name=place.resolve().name,
        rank=2,
        modalities=("red", "green", "blue"),
        classes=classes,
    )


def _picture(name: str, path: Path, grade: int | None = None) -> SourceCase:
    case = id_of(name)
    return SourceCase(case, case, ((path,),), grade=grade)


def _wrong_row(
    source: Source, name: str, grade: str, files: list[Path], classes: dict[int, str]
) -> str | None:
    """What is wrong with a row of the table, or None."""
    if not name or Path(name).name != name or name.startswith("."):
        return f"{name!r} is not a plain file name"
    if not files:
        return f"no picture called {name} in {source.folder}"
    if len(files) > 1:
        both = " and ".join(source.relative(path) for path in files[:2])
        return f"{name} could be {both}; rename one"
    if _grade(grade) is None:
        return f"grade {grade!r} of {name} is not a whole number"
    if _grade(grade) not in classes:
        return f"grade {grade} of {name} is out of range ({min(classes)} to {max(classes)})"
    return None


def _grade(text: str) -> int | None:
    """ "2" and "2.0" -> 2; None for what is not a whole number of at most nine digits."""
    match = re.fullmatch(r"([0-9]{1,9})(\.0*)?", text)
    return int(match[1]) if match else None


def _only_table(place: Path) -> Path:
    """The one CSV of the source that has a name and a grade column."""
    tables = []
    for path in sorted(place.glob("*.csv")):
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                header = next(csv.reader(file), [])
        except (OSError, csv.Error):
            continue
        if None not in _columns(header):
            tables.append(path)
    if len(tables) != 1:
        what = "no CSV" if not tables else " and ".join(path.name for path in tables)
        raise UserError(
            f"{place}: {what} with a name and a grade per row; say which with --csv=FILE "
            f"(columns like {ID_COLUMNS[0]} and {GRADE_COLUMNS[0]})"
        )
    return tables[0]


def _columns(header: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of the names and of the grades, whatever their spelling."""
    spelled = {name.strip().lower(): name for name in header}
    name = next((spelled[known] for known in ID_COLUMNS if known in spelled), None)
    grade = next((spelled[known] for known in GRADE_COLUMNS if known in spelled), None)
    return name, grade


def _rows(table: Path) -> list[tuple[int, str, str]]:
    """[(line, name, grade)]. Raises `UserError` for an unreadable table or missing columns."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            lines = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"--csv={table}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read as a CSV ({error})") from None
    name, grade = _columns(columns)
    if name is None or grade is None:
        raise UserError(
            f"{table}: needs a column of names ({', '.join(ID_COLUMNS)}) and one of grades "
            f"({', '.join(GRADE_COLUMNS)}); it has {', '.join(columns) or 'nothing'}"
        )
    rows = [(line, (row[name] or "").strip(), (row[grade] or "").strip()) for line, row in lines]
    if not rows:
        raise UserError(f"{table}: no rows below the header")
    return rows
