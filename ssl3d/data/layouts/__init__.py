"""Source layouts: from a folder of files to the list of its cases, one module per layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ssl3d.data.layouts import (
    bids,
    brats,
    dicom,
    folder,
    grades,
    images,
    msd,
    nnunet,
    ukb,
)
from ssl3d.data.layouts.listing import Listing, Options
from ssl3d.errors import UserError

LAYOUTS: dict[str, Callable[[Path, Options], Listing]] = {
    "msd": msd.find,
    "nnunet": nnunet.find,
    "brats": brats.find,
    "ukb": ukb.find,
    "bids": bids.find,
    "folder": folder.find,
    "dicom": dicom.find,
    "images": images.find,
}
# Options that apply to some layouts only.
LAYOUTS_WITH_LABELS = ("bids", "dicom", "folder")
# Whose files tell no grades; a table can.
LAYOUTS_TO_GRADE = ("bids", "dicom", "folder")
LAYOUTS_WITH_CSV = ("images", *LAYOUTS_TO_GRADE)
LAYOUTS_WITH_PATTERNS = ("folder",)


def list_cases(layout: str, source: Path, options: Options | None = None) -> Listing:
    """Lists the cases of a source folder.

    Args:
      layout: one of `LAYOUTS`.
      source: the folder.
      options: what the files alone do not tell.

    Raises:
      UserError: the folder does not have this layout. Faults of single cases are in the listing's
        `problems` instead.
    """
    options = options or Options()
    for option, value, layouts in (
        ("labels", options.labels, LAYOUTS_WITH_LABELS),
        ("csv", options.csv, LAYOUTS_WITH_CSV),
        ("images", options.images, LAYOUTS_WITH_PATTERNS),
    ):
        if value is not None and layout not in layouts:
            raise UserError(f"--{option} is for --layout={' or '.join(layouts)}, not {layout}")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    if options.labels is not None:
        if options.labels.is_dir():
            options = dataclasses.replace(options, labels=options.labels.resolve())
        elif layout != "folder" or not folder.is_pattern(options.labels):
            raise UserError(f"--labels={options.labels}: no such folder")
    # Resolved: `.` has no name, and labels below the source are recognised by their path.
    source = source.resolve()
    if options.csv is None or layout not in LAYOUTS_TO_GRADE:
        return LAYOUTS[layout](source, options)
    if options.labels is not None:
        raise UserError("--labels and --csv: a data set has label maps or grades; leave one out")
    listing = LAYOUTS[layout](source, dataclasses.replace(options, no_labels=True, classes=None))
    return grades.graded(listing, options.csv, options.classes)
