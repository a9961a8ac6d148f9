"""What preparation shows of its work: a table of the cases and a sheet of pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ssl3d.data import store
from ssl3d.data.layouts.listing import Problem

REPORT = "report.csv"
SHEET = "contact_sheet.png"
# Pixels; three views of a volume side by side stay readable, 120 of them stay one screenful.
TILE = 96
COLUMNS = 6
MAX_CASES = 120
CAPTION = 12
OVERLAY = 0.45
# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def write_report(
    dataset: store.Dataset, problems: Sequence[Problem], notes: Sequence[Problem]
) -> None:
    """`report.csv`: one row per case, prepared or left out, and per note, sorted by name."""
    voxels = [f"voxels of {name}" for name in dataset.classes]
    header = ["id", "status", "reason", "split", "split by", "subject", "grade", "shape"]
    header += ["spacing", "source shape", *voxels, "source"]
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
                " ".join(case.extra["source"]),
            ]
        )
    rows += [[problem.name, "left out", problem.reason] for problem in problems]
    rows += [[note.name, "note", note.reason] for note in notes]
    rows.sort(key=lambda row: row[:3])
    # A file name that is not UTF-8 is shown escaped.
    path = dataset.path / REPORT
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([*row, *[""] * (len(header) - len(row))] for row in rows)


def write_contact_sheet(dataset: store.Dataset) -> None:
    """`contact_sheet.png`: middle slices of the cases, labels in colour.

    Volumes show their axial, coronal and sagittal slice through the middle of the foreground
    (of the label, where there is one), the first channel only. Of more than `MAX_CASES` cases
    so many are shown, evenly chosen from the sorted ids.
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
        shown = None if label is None else np.asarray(label)
        return [_tile(np.asarray(image, np.float32), shown, case.spacing)]
    box = case.foreground or tuple((0, n) for n in case.shape)
    middle = [(start + stop) // 2 for start, stop in box]
    if label is not None and label.any():
        middle = [round(float(np.mean(indices))) for indices in np.nonzero(label)]
    tiles = []
    for axis in (2, 1, 0):
        where = (slice(None),) * axis + (middle[axis],)
        # Anterior or superior up and the patient's left on the left: the canonical axes as they
        # are, turned once.
        plane = np.asarray(image[where][..., :1], np.float32)
        shown = None if label is None else np.rot90(np.asarray(label[where]))
        across, up = (mm for i, mm in enumerate(case.spacing) if i != axis)
        tiles.append(_tile(np.rot90(plane), shown, (up, across)))
    return tiles


def _tile(plane: np.ndarray, label: np.ndarray | None, spacing: tuple[float, ...]) -> Image.Image:
    """[H, W, C], [H, W] and (row, column) spacing -> a square picture in true proportions."""
    low, high = np.percentile(plane, (1, 99), axis=(0, 1))
    grey = np.clip((plane - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    rgb = np.broadcast_to(grey, (*grey.shape[:2], 3)).copy()
    if label is not None:
        for value in np.unique(label[label > 0]):
            where = label == value
            colour = COLOURS[(int(value) - 1) % len(COLOURS)]
            rgb[where] = (1 - OVERLAY) * rgb[where] + OVERLAY * np.asarray(colour)
    picture = Image.fromarray(rgb.astype(np.uint8))
    extent = (picture.size[0] * spacing[1], picture.size[1] * spacing[0])
    size = tuple(max(1, round(side * TILE / max(extent))) for side in extent)
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(picture.resize(size), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
