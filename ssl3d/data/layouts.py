"""Where the files are: one function per layout, from a folder to the list of its cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl3d.data.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    assign_subjects,
    without_duplicates,
)
from ssl3d.data.readers import VOLUME_SUFFIXES, stem
from ssl3d.errors import UserError


def list_cases(layout: str, folder: Path, options: Options | None = None) -> Listing:
    """Lists the cases of a source folder.

    Args:
      layout: one of `LAYOUTS`.
      folder: the source.
      options: what the layout cannot find out by itself.

    Raises:
      UserError: the folder is not of that layout at all; what is wrong with single cases is in
        the listing's `problems`.
    """
    options = options or Options()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return LAYOUTS[layout](folder, options)


def _finish(
    source: Source, options: Options, *, cases: list[SourceCase], splits_by: str, **fields: Any
) -> Listing:
    """The listing, its ids unique and its subjects as the user's pattern wants them."""
    kept, problems = without_duplicates(cases)
    if options.subject_pattern:
        kept, unfit = assign_subjects(kept, options.subject_pattern)
        problems += unfit
        splits_by = "subject"
    if not kept and not problems and not source.problems:
        raise UserError(f"{source.folder}: no cases found; is --layout the right one?")
    return Listing(
        cases=tuple(kept),
        splits_by=splits_by,
        problems=(*source.problems, *problems),
        notes=tuple(source.notes),
        **fields,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this layout needs it (see docs/data.md)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a JSON object")
    return document


def _named(path: Path, document: dict[str, Any], key: str) -> list[str]:
    """{"0": "CT", "1": "PET"} -> ["CT", "PET"]."""
    entry = document.get(key)
    try:
        return [str(entry[number]) for number in sorted(entry, key=int)]
    except (TypeError, ValueError, KeyError):
        raise UserError(f'{path}: "{key}" is missing or not like {{"0": "MRI"}}') from None


def msd(folder: Path, options: Options) -> Listing:
    """Medical Segmentation Decathlon: dataset.json, imagesTr, labelsTr, imagesTs."""
    source = Source(folder)
    file = folder / "dataset.json"
    document = _read_json(file)
    labels = _named(file, document, "labels")
    values = sorted(int(value) for value in document["labels"])
    cases: list[SourceCase] = []
    named: set[Path] = set()
    for key in ("training", "test"):
        entries = document.get(key, [])
        if not isinstance(entries, list):
            raise UserError(f'{file}: "{key}" is not a list')
        for entry in entries:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                source.problem(file, f'an entry of "{key}" names no image: {json.dumps(entry)}')
                continue
            image = folder / entry["image"]
            label = folder / entry["label"] if isinstance(entry.get("label"), str) else None
            named.update({image, label} if label else {image})
            if not source.inside(image) or (label and not source.inside(label)):
                continue
            if key == "training" and label is None:
                source.notes.append(f"{image}: no label; used as unlabelled")
            cases.append(SourceCase(stem(image), stem(image), ((image,),), label))
    for path in source.files(folder, VOLUME_SUFFIXES):
        if path not in named:
            kind = "a label without an image" if path.parent.name == "labelsTr" else "an image"
            source.notes.append(f"{path}: {kind} that dataset.json does not list; left out")
    return _finish(
        source,
        options,
        cases=cases,
        splits_by="case",
        name=str(document.get("name", folder.name)),
        rank=3,
        modalities=options.modalities or tuple(_named(file, document, "modality")),
        classes=dict(zip(values, labels, strict=True)),
    )


LAYOUTS: dict[str, Callable[[Path, Options], Listing]] = {"msd": msd}
