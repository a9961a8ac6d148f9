"""The predictions of a segmentation as files: label maps, their volumes, and pictures of them.

CASE.nii.gz or CASE.png, CASE.dcm   the label map on the grid of its source
dataset.json                        the classes by label value, as nnU-Net has them
volumes.csv                         millilitres of every class, a row per case; volumes only
previews/CASE.png                   the label map over the image
probabilities/CASE.nii.gz           if they are wanted
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl3d.atomic import atomic_write
from ssl3d.data import dicom_seg, geometry, store, writers
from ssl3d.data.preparation import case as preparation
from ssl3d.downstream import predictor
from ssl3d.downstream.contract import Outputs, PreparedImage
from ssl3d.downstream.predict_files import check_any, label_values, leave_out
from ssl3d.downstream.predictor import Predictor
from ssl3d.errors import UserError
from ssl3d.figures import case_pictures

CLASSES, VOLUMES, PREVIEWS, PROBABILITIES = (
    "dataset.json",
    "volumes.csv",
    "previews",
    "probabilities",
)


def write(
    trained: Predictor,
    images: Iterable[PreparedImage],
    settings: preparation.PreparationSettings,
    wanted: Outputs,
) -> tuple[int, str]:
    """Writes a label map per case on the grid of its source, and what else is wanted.

    Returns:
      The number of label maps, and what they are called.

    Raises:
      UserError: no DICOM segmentation can refer to the series of a case; with `wanted.skip`, of
        any case.
    """
    dataset, folder = trained.model.dataset, wanted.folder
    brats = dataset.extra.get("layout") == "brats"
    rows: list[list[str]] = []
    found_values: dict[str, set[int]] = defaultdict(set)
    for source, case, image in images:
        found = predictor.segment(trained, image)
        values = label_values(settings, case.id if brats else None)
        labels = predictor.to_source_grid(trained, found, case)
        if wanted.format == "dicom-seg":
            try:
                with atomic_write(folder / f"{case.id}.dcm") as path:
                    dicom_seg.write(path, source, labels, dataset.classes)
            except UserError as error:
                leave_out(str(error), wanted.skip)
                continue
        else:
            writers.write_on_source_grid(folder, source, case, [values[labels]], values.dtype)
        if wanted.probabilities:
            parts = on_source_grid(trained, found, case)
            place = folder / PROBABILITIES
            dtype, channels = np.dtype(np.float32), found.shape[-1]
            writers.write_on_source_grid(place, source, case, parts, dtype, channels)
        for name, value in zip(dataset.classes, values.tolist(), strict=True):
            found_values[name].add(value)
        rows.append([case.id, ";".join(case.extra["source"]), *millilitres(labels, case, dataset)])
        if wanted.pictures:
            _write_preview(folder / PREVIEWS, trained, found, case, image)
    check_any(len(rows), settings)
    _write_classes(folder, dataset, found_values, wanted.format)
    if dataset.rank == 3:
        header = ["id", "file", *(f"{name} (ml)" for name in dataset.classes[1:])]
        _write_table(folder / VOLUMES, header, rows)
    return len(rows), "label map" if len(rows) == 1 else "label maps"


def on_source_grid(
    trained: Predictor, probabilities: np.ndarray, case: store.Case
) -> Iterator[np.ndarray]:
    """[*S, K] -> the float32 map of each channel on the source's grid, one at a time.

    Voxels that the preparation cropped away are background.
    """
    inside, _ = geometry.to_source(np.ones(case.shape, bool), case)
    for channel in range(probabilities.shape[-1]):
        part, _ = geometry.to_source(probabilities[..., channel], case, "linear")
        # Regions, one sigmoid each, have no channel for the background.
        background = channel == 0 and not trained.model.config.task.regions
        yield np.where(inside, part, np.float32(background))


def millilitres(labels: np.ndarray, case: store.Case, dataset: store.Dataset) -> list[str]:
    """The volume of every foreground class of a label map on the source's grid."""
    affine = np.asarray(case.extra["source_affine"])
    voxel = abs(float(np.linalg.det(affine[:-1, :-1]))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(dataset.classes))
    return [f"{count * voxel:.4f}" for count in counts[1:]]


def _write_preview(
    folder: Path,
    trained: Predictor,
    probabilities: np.ndarray,
    case: store.Case,
    image: np.ndarray,
) -> None:
    folder.mkdir(exist_ok=True)
    labels = predictor.label_map(trained, probabilities)
    classes = trained.model.dataset.classes
    figure = case_pictures.preview(image, labels, classes, case.spacing, case.id)
    with atomic_write(folder / f"{case.id}.png") as path:
        figure.savefig(path, dpi=100, format="png")


def _write_classes(
    folder: Path, dataset: store.Dataset, values: dict[str, set[int]], form: str
) -> None:
    """nnU-Net's dataset.json: a class of several values (BraTS: by the year) is a list of them."""
    if form == "dicom-seg":  # segments are numbered by class
        values = {name: {number} for number, name in enumerate(dataset.classes)}
    labels: dict[str, Any] = {
        name: found.pop() if len(found) == 1 else sorted(found)
        for name, found in ((name, set(found)) for name, found in values.items())
    }
    endings = {"dicom-seg": ".dcm", "nifti": ".nii.gz" if dataset.rank == 3 else ".png"}
    document = {
        "name": dataset.name,
        "channel_names": {str(i): name for i, name in enumerate(dataset.modalities)},
        "labels": labels,
        "file_ending": endings[form],
    }
    with atomic_write(folder / CLASSES) as path:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_write(file) as path, path.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
