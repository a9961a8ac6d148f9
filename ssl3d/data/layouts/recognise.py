"""The layout of a source folder, by what is in it.

The module of a layout may define `evidence(survey) -> str`: what in the folder speaks for it, as a
phrase, or "". Without evidence for any, images are those of the layout `folder`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from ssl3d.data.layouts import LAYOUTS, folder
from ssl3d.data.layouts.survey import Survey, refuse_prepared, survey
from ssl3d.errors import UserError

# Any tree of images, which the layouts with evidence are too.
ANY = "folder"


class Recognised(NamedTuple):
    """The name of a layout, and what speaks for it."""

    name: str
    evidence: str


def recognise(
    source: Path,
    labels: Path | None = None,
    images: str | None = None,
    csv: Path | None = None,
    follow_links: bool = True,
) -> Recognised:
    """The layout of a source folder.

    Args:
      labels: folder of label maps, which are no images, or a pattern, which `folder` alone takes.
      images: a pattern, which `folder` alone takes.
      csv: a table of grades.

    Raises:
      UserError: no such folder, no images, a prepared data set, or evidence for several layouts.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    if images is not None or folder.is_pattern(labels):
        return Recognised(ANY, "a pattern of files is given")
    found = survey(source.resolve(), follow_links, csv)
    refuse_prepared(found)
    candidates = {}
    for name, find in LAYOUTS.items():
        evidence = getattr(sys.modules[find.__module__], "evidence", None)
        if evidence is not None and (phrase := evidence(found)):
            candidates[name] = phrase
    below = None if labels is None else labels.resolve()
    volumes = [path for path in found.volumes if below is None or not path.is_relative_to(below)]
    if not candidates.keys() - {"dicom"} and (volumes or (found.pictures and not candidates)):
        first = (volumes or found.pictures)[0].relative_to(found.folder)
        candidates[ANY] = f"{first} and no other layout's names"
    if not candidates:
        raise UserError(
            f"{source}: holds no image that can be read; see the formats in docs/data.md"
        )
    if len(candidates) > 1:
        each = "; ".join(f"--layout={name} ({phrase})" for name, phrase in candidates.items())
        raise UserError(f"{source}: has several layouts, choose one: {each}")
    return Recognised(*candidates.popitem())


__all__ = ["Recognised", "Survey", "recognise"]
