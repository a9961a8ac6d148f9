"""Predicts an image that is in memory: `ssl3d.predict.predict`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl3d import tasks
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation import case as preparation
from ssl3d.data.readers import Volume, checks
from ssl3d.downstream import predictor, segmentation_files
from ssl3d.downstream.predictor import Predictor
from ssl3d.errors import UserError


class Prediction(NamedTuple):
    """What a network says of an image.

    Attributes:
      labels: class indices uint8 [*S] of a segmentation, on the grid of the image; the class of a
        classification, [].
      probabilities: float32 [*S, K], or [K]; of regions (config.task.regions) without background.
      classes: the names of the K classes.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


def predict(
    array: np.ndarray,
    spacing: Sequence[float],
    workdir: Path | str | Sequence[Path | str],
    *,
    affine: np.ndarray | None = None,
    model: str = "best",
    mirror: bool = False,
    overlap: float | None = None,
) -> Prediction:
    """Prepares an image like the training data, and predicts it.

    Args:
      array: [*S] or [*S, C], with the values of a file: HU of a CT, 0 to 255 of a picture. The
        axes of a volume point to the patient's right, anterior and superior.
      spacing: mm per voxel along the r axes of a volume; of no account for pictures.
      workdir: a run of segmentation or classification, or several, whose probabilities are
        averaged. The networks of the last call stay in memory.
      affine: voxel to mm in RAS+, [4, 4], instead of the axes and the spacing.
      model: "best" or "last".
      mirror: average over images mirrored as in training.
      overlap: of neighbouring windows, in [0, 1); None: as in the run's config.

    Raises:
      UserError: no such run, or an image unlike those of the training data.
    """
    given = [workdir] if isinstance(workdir, str | Path) else workdir
    trained = _load(tuple(map(Path, given)), model, mirror, overlap)
    config, dataset = trained.model.config, trained.model.dataset
    image = _volume(np.asarray(array), spacing, affine, dataset.rank, len(dataset.modalities))
    settings = preparation.settings_of_dataset(dataset, Path())
    case = SourceCase("array", "array", ((Path("array"),),))
    prepared = preparation.prepare_arrays(case, settings, image)
    shown = prepared.image.astype(np.float16)  # as the store keeps the training images
    if tasks.needs(config) != "label_map":
        probability = next(iter(predictor.classify(trained, [shown])))
        return Prediction(predictor.grade_of(trained, probability), probability, dataset.classes)
    found = predictor.segment(trained, shown)
    labels = predictor.to_source_grid(trained, found, prepared.case)
    maps = segmentation_files.on_source_grid(trained, found, prepared.case)
    return Prediction(labels, np.stack(list(maps), axis=-1), dataset.classes)


@functools.lru_cache(maxsize=1)
def _load(workdirs: tuple[Path, ...], model: str, mirror: bool, overlap: float | None) -> Predictor:
    return predictor.load_ensemble(workdirs, model, mirror, overlap)


def _volume(
    array: np.ndarray,
    spacing: Sequence[float],
    affine: np.ndarray | None,
    rank: int,
    channels: int,
) -> Volume:
    """The array as a reader returns it. Raises `UserError`."""
    if array.ndim == rank:
        array = array[..., None]
    if array.ndim != rank + 1 or min(array.shape) < 1:
        raise UserError(
            f"array: its shape is {array.shape}; give {rank} axes of space, and one of {channels} "
            "channels behind them"
        )
    if array.dtype.kind not in "iufb":
        raise UserError(f"array: values of type {array.dtype} are not numbers")
    if affine is None:
        steps = np.ones(2) if rank == 2 else np.asarray(spacing, np.float64)
        if steps.shape != (rank,) or not (np.isfinite(steps) & (steps > 0)).all():
            raise UserError(f"spacing={spacing}: must be {rank} positive numbers, in mm")
        affine = np.diag([*steps, 1.0])
    affine = np.asarray(affine, np.float64)
    if affine.shape != (rank + 1, rank + 1):
        raise UserError(f"affine: its shape is {affine.shape}; must be {(rank + 1, rank + 1)}")
    if rank == 3:
        checks.check_affine(Path("array"), affine)
    image = np.array(array, np.float32)
    checks.check_values(Path("array"), image)
    return Volume(image, affine)
