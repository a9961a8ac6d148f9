"""A look at a source folder before its layout is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ssl3d import documents
from ssl3d.data.layouts.source import Source
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, suffix
from ssl3d.errors import UserError


@dataclasses.dataclass(frozen=True)
class Survey:
    """The files of a folder by kind; a layout's `evidence` is found among them.

    Attributes:
      folder: resolved.
      volumes, pictures, others: all files that are not hidden, sorted.
      document: the object in the folder's dataset.json; empty without one.
      grades: a table that the user names, or None.
    """

    folder: Path
    volumes: tuple[Path, ...]
    pictures: tuple[Path, ...]
    others: tuple[Path, ...]
    document: dict[str, Any]
    grades: Path | None = None


def survey(folder: Path, follow_links: bool = True, grades: Path | None = None) -> Survey:
    """Lists a folder. Raises `UserError`: a dataset.json that cannot be read."""
    files = list(Source(folder, follow_links).files(folder))
    kinds = [suffix(path) for path in files]
    document = folder / "dataset.json"
    return Survey(
        folder,
        tuple(p for p, kind in zip(files, kinds, strict=True) if kind in VOLUME_SUFFIXES),
        tuple(p for p, kind in zip(files, kinds, strict=True) if kind in PICTURE_SUFFIXES),
        tuple(p for p, kind in zip(files, kinds, strict=True) if not kind),
        _object(document) if document.is_file() else {},
        grades,
    )


def _object(file: Path) -> dict[str, Any]:
    # Of a prepared data set it may be long.
    return documents.read_object(file, "correct it", large=documents.large_list())


def refuse_prepared(found: Survey) -> None:
    """Raises `UserError` for a folder that `ssl3d.prepare` wrote."""
    if found.document.get("format") == "ssl3d-prepared":
        raise UserError(
            f"{found.folder}: is a prepared data set; train on it with --config.data.path="
            f"{found.folder}"
        )
