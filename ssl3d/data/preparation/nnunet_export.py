"""A prepared collection as nnU-Net's raw data, with the same cases, classes and splits.

    OUTPUT/nnunet/Dataset001_NAME/
      dataset.json        channels, classes
      imagesTr, labelsTr  training and validation cases, as their files have them
      imagesTs, labelsTs  test cases, and images without labels
      splits_final.json   for nnUNet_preprocessed/Dataset001_NAME: our split as fold 0

nnU-Net normalises and resamples itself: intensities, spacing and extent are those of the source.
Axes are permuted and flipped to the closest R, A, S, and label values are class indices.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ssl3d.atomic import atomic_write
from ssl3d.data import store, writers
from ssl3d.data.layouts.listing import IGNORE, IGNORED, SourceCase
from ssl3d.data.preparation.case import PreparationSettings, read_case
from ssl3d.data.preparation.workers import Workers, in_parallel
from ssl3d.errors import UserError

FOLDER = "nnunet"
_INT16 = np.iinfo(np.int16)


def export(
    dataset: store.Dataset,
    sources: Sequence[SourceCase],
    settings: PreparationSettings,
    workers: Workers,
) -> Path:
    """Writes nnU-Net's raw data below the folder of a data set; returns their folder.

    Args:
      sources: the files of the cases, in any order.
      settings: of the preparation.

    Raises:
      UserError: no label maps, or a file that can no longer be read.
      OSError: the disk is full.
    """
    if not any(case.labelled for case in dataset.cases):
        raise UserError("--export=nnunet: no case has a label map for nnU-Net to learn from")
    name = re.sub(r"[^A-Za-z0-9]+", "", dataset.name) or "Data"
    folder = dataset.path / FOLDER / f"Dataset001_{name}"
    files = {case.id: case for case in sources}
    calls = [(files[case.id], case, settings, folder) for case in dataset.cases]
    ignoring = False
    for index, found in in_parallel(_write_case, calls, workers, "exporting"):
        if isinstance(found, UserError):
            raise UserError(f"--export=nnunet: {calls[index][0].id}: {found}")
        ignoring |= found
    split = {part: [c.id for c in _labelled(dataset, part)] for part in ("train", "val")}
    _write_json(folder / "splits_final.json", [split])
    labels = {name: index for index, name in enumerate(dataset.classes)}
    if ignoring:  # nnU-Net wants the highest value for it
        labels[IGNORE] = len(labels)
    document = {
        "name": name,
        "channel_names": {str(i): name for i, name in enumerate(_channels(settings))},
        "labels": labels,
        "numTraining": len(split["train"]) + len(split["val"]),
        "file_ending": _ending(dataset.rank),
    }
    _write_json(folder / "dataset.json", document)
    return folder


def _labelled(dataset: store.Dataset, split: str) -> list[store.Case]:
    return [case for case in dataset.split(split) if case.labelled]


def _channels(settings: PreparationSettings) -> tuple[str, ...]:
    """Names of the channels; by "CT" nnU-Net chooses its normalisation."""
    names = settings.modalities
    return ("CT",) if settings.recipe.kind == "CT" and len(names) == 1 else names


def _ending(rank: int) -> str:
    return ".nii.gz" if rank == 3 else ".png"


def _write_case(
    source: SourceCase, case: store.Case, settings: PreparationSettings, folder: Path
) -> bool:
    """Writes one case; returns whether some of its voxels belong to no class."""
    if not case.labelled:  # or with a faulty label
        source = dataclasses.replace(source, label=None)
    image, grid, label = read_case(source, settings)
    part = "Tr" if case.split in ("train", "val") and case.labelled else "Ts"
    rank, ending = len(grid.shape), _ending(len(grid.shape))
    places = [folder / f"{kind}{part}" for kind in ("images", "labels")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    if rank == 2:
        pixels = np.rint(image).clip(0, 255).astype(np.uint8)
        grey = pixels.shape[-1] == 1
        _write_picture(places[0] / f"{case.id}_0000{ending}", pixels[..., 0] if grey else pixels)
    else:
        for channel in range(image.shape[-1]):
            path = places[0] / f"{case.id}_{channel:04d}{ending}"
            _write_volume(path, _smallest(image[..., channel]), grid.affine)
    if label is None:
        return False
    ignored = label == IGNORED
    label = np.where(ignored, settings.classes, label).astype(np.uint8)
    path = places[1] / f"{case.id}{ending}"
    if rank == 2:
        _write_picture(path, label)
    else:
        _write_volume(path, label, grid.affine)
    return bool(ignored.any())


def _smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 16 bits, as scanners write them, else float32."""
    whole = values.min() >= _INT16.min and values.max() <= _INT16.max
    whole = whole and bool((values == np.rint(values)).all())
    return values.astype(np.int16) if whole else values


def _write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    header = writers.with_geometry(nib.Nifti1Header(), array.shape, affine)
    header.set_data_dtype(array.dtype)
    with atomic_write(path) as partial:
        writers.write_nifti(partial, [array], header)


def _write_picture(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as partial:
        Image.fromarray(array).save(partial, "PNG")


def _write_json(path: Path, document: Any) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
