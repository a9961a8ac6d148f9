"""Output of a preparation: messages, a table of the cases, a contact sheet."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ssl3d.data import intensity, store
from ssl3d.data.layouts.listing import IGNORED, Problem
from ssl3d.errors import UserError

REPORT = "report.csv"
SHEET = "contact_sheet.png"
NOTES_SHOWN = 20
# Pixels: three views of a volume side by side are readable, and 120 cases fit on a screen.
TILE = 96
COLUMNS = 6
MAX_CASES = 120
CAPTION = 12
OVERLAY = 0.45
# The palette of Okabe and Ito, distinguishable with any colour vision.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def print_notes(notes: Sequence[Problem]) -> None:
    """Prints the first notes, one per line; the report has all of them."""
    for note in notes[:NOTES_SHOWN]:
        print(" ".join(f"note: {note.name}: {note.reason}".split()), file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        more = len(notes) - NOTES_SHOWN
        print(f"note: {more} more like these, see {REPORT}", file=sys.stderr)


def print_problems(problems: Sequence[Problem], on_error: str) -> None:
    """Prints each problem on a line of its own."""
    word = "error" if on_error == "stop" else "left out"
    for problem in problems:
        print(" ".join(f"{word}: {problem.name}: {problem.reason}".split()), file=sys.stderr)


def stop_for_problems(problems: Sequence[Problem], on_error: str) -> None:
    """Raises `UserError` for any problem, if `on_error` is "stop"."""
    if problems and on_error == "stop":
        what = "one case" if len(problems) == 1 else f"{len(problems)} cases"
        raise UserError(
            f"{what} cannot be prepared, see above; fix this and run again (finished cases are "
            "kept), or add --on-error=skip"
        )


def summary(dataset: store.Dataset, left_out: int, reused: int, seconds: float) -> str:
    """The last line of a run."""
    counts = Counter(case.split for case in dataset.cases)
    parts = [f"{split} {counts[split]}" for split in store.SPLITS if counts[split]]
    cases = "1 case" if len(dataset.cases) == 1 else f"{len(dataset.cases)} cases"
    line = f"{dataset.path}: {cases} ({', '.join(parts)}; "
    line += f"splits by {dataset.splits_by}"
    if dataset.splits_by == "case":
        line += ", as the source has no subject ids"
    line += ")"
    if reused:
        line += f"; {reused} already prepared"
    if left_out:
        line += f"; {left_out} left out, see {REPORT}"
    return f"{line}; {seconds:.1f} s"


def write_report(
    dataset: store.Dataset, problems: Sequence[Problem], notes: Sequence[Problem]
) -> None:
    """Writes `report.csv`: a row per case, prepared or left out, and per note, sorted by name."""
    voxels = [f"voxels of {name}" for name in dataset.classes]
    header = ["id", "status", "reason", "split", "split by", "subject", "grade", "shape"]
    header += ["spacing", "source shape", *voxels, "foreground kept", "label kept", "source"]
    rows = []
    for case in dataset.cases:
        counts = case.extra["voxels"] or [""] * len(voxels)
        rows.append(
            [
                *(case.id, "prepared", "", case.split, dataset.splits_by, case.subject),
                "" if case.grade is None else case.grade,
                "x".join(map(str, case.shape)),
                "x".join(f"{x:.4g}" for x in case.spacing),
                "x".join(map(str, case.extra["source_shape"])),
                *counts,
                *_kept(case),
                " ".join(case.extra["source"]),
            ]
        )
    rows += [[problem.name, "left out", problem.reason] for problem in problems]
    rows += [[note.name, "note", note.reason] for note in notes]
    rows.sort(key=lambda row: row[:3])
    # File names that are not UTF-8 are escaped.
    path = dataset.path / REPORT
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([*row, *[""] * (len(header) - len(row))] for row in rows)


def _kept(case: store.Case) -> list[str]:
    """The shares of the foreground and of the labelled voxels that the crop keeps."""
    crop = case.extra.get("crop", {})
    before, after = crop.get("foreground") or (0, 0)
    labels = crop.get("labels") or [None, None]
    whole, rest = (sum(counts[1:]) if counts else 0 for counts in labels)
    return [f"{b / a:.4f}" if a else "" for a, b in ((before, after), (whole, rest))]


def write_contact_sheet(dataset: store.Dataset) -> None:
    """Writes `contact_sheet.png`: middle slices of the cases, labels in colour.

    A volume is shown by the axial, coronal and sagittal slice of its first channel through the
    middle of the label, or of the foreground without one. At most `MAX_CASES` cases are shown,
    evenly spaced in the sorted ids.
    """
    count = min(len(dataset.cases), MAX_CASES)
    chosen = [
        dataset.cases[i] for i in np.linspace(0, len(dataset.cases) - 1, count).round().astype(int)
    ]
    views = 3 if dataset.rank == 3 else 1
    columns = COLUMNS if views == 3 else 2 * COLUMNS
    width, height = views * TILE + 4, TILE + CAPTION + 4
    rows = -(-count // columns)
    sheet = Image.new("RGB", (min(columns, count) * width, rows * height), "black")
    draw = ImageDraw.Draw(sheet)
    for place, case in enumerate(chosen):
        left, top = place % columns * width, place // columns * height
        for view, picture in enumerate(_views(dataset, case)):
            sheet.paste(picture, (left + view * TILE, top))
        grade = "" if case.grade is None else f" {case.grade}"
        caption = f"{case.id[-(width // 7) :]}{grade} {case.split}"
        draw.text((left, top + TILE), caption, fill="white")
    sheet.save(dataset.path / SHEET)


def _views(dataset: store.Dataset, case: store.Case) -> list[Image.Image]:
    image = store.load_image(dataset, case)
    label = store.load_label(dataset, case) if case.labelled else None
    if dataset.rank == 2:
        shown = None if label is None else np.where(label == IGNORED, 0, label)
        return [_tile(np.asarray(image, np.float32), shown, case.spacing)]
    box = case.foreground or tuple((0, n) for n in case.shape)
    middle = [(start + stop) // 2 for start, stop in box]
    if label is not None:
        label = np.where(label == IGNORED, 0, label)
        if label.any():
            middle = [round(float(np.mean(indices))) for indices in np.nonzero(label)]
    tiles = []
    for axis in (2, 1, 0):
        where = (slice(None),) * axis + (middle[axis],)
        # Anterior or superior up, the patient's right on the left, as radiologists look at it.
        plane = np.asarray(image[where][..., :1], np.float32)
        shown = None if label is None else np.rot90(np.asarray(label[where]))[:, ::-1]
        across, up = (mm for i, mm in enumerate(case.spacing) if i != axis)
        tiles.append(_tile(np.rot90(plane)[:, ::-1], shown, (up, across)))
    return tiles


def _tile(plane: np.ndarray, label: np.ndarray | None, spacing: tuple[float, ...]) -> Image.Image:
    """[H, W, C], [H, W] and the (row, column) spacing in mm -> a square tile, true to scale."""
    low, high = intensity.display_window(plane)
    grey = np.clip((plane - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    rgb = np.broadcast_to(grey, (*grey.shape[:2], 3)).copy()
    if label is not None:
        for value in np.unique(label[label > 0]):
            where = label == value
            colour = COLOURS[(int(value) - 1) % len(COLOURS)]
            rgb[where] = (1 - OVERLAY) * rgb[where] + OVERLAY * np.asarray(colour)
    picture = Image.fromarray(rgb.astype(np.uint8))
    extent = (picture.size[0] * spacing[1], picture.size[1] * spacing[0])
    width, height = (max(1, round(side * TILE / max(extent))) for side in extent)
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(picture.resize((width, height)), ((TILE - width) // 2, (TILE - height) // 2))
    return tile
