"""Scores of segmentations, per case and summarised, on the source grid where that is possible.

One case is in memory at a time; pooled over cases is only the sum of their confusion matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ssl3d import metrics, reference_scores
from ssl3d.data import geometry, readers, store
from ssl3d.data.pipeline import OUTSIDE
from ssl3d.data.preparation.case import check_label_values, settings_of_dataset
from ssl3d.downstream import predictor
from ssl3d.downstream.predictor import Predictor
from ssl3d.errors import UserError

# What a segmentation is scored against.
SOURCE = "the source's own labels on the source's grid"
RESTORED = "the prepared labels brought back to the source's grid"
PREPARED = "the prepared labels on the prepared grid"

TOLERANCE = 1.0  # mm, of the normalised surface Dice
MEAN_FOREGROUND = "mean foreground"
# First letters of the classes in the order that `metrics.BRATS_REGIONS` assumes, as in BraTS and
# the phantom brain. Task01 of the Decathlon, for one, has another order: oedema first.
_BRATS_CLASSES = ("background", "necro", "oedema", "enhancing")


class CaseRow(metrics.MaskRow):
    """A row of `cases.csv`: one class or region of one case."""

    id: str
    subject: str


class Summary(TypedDict):
    """The part of `summary.json` about scores.

    Attributes:
      tolerance_mm: of the normalised surface Dice.
      regions: name -> class indices.
      mean_foreground: counts of cases, and the statistics of each score.
      scores: the same of each class and region.
      reference: the original code's scores.
    """

    tolerance_mm: float
    regions: dict[str, list[int]]
    mean_foreground: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    reference: dict[str, float]


class Scored(NamedTuple):
    """Prediction and truth of a case, both int [*S] of class indices on one grid.

    Attributes:
      spacing: of the grid, in mm.
      known: bool [*S]: voxels that nobody annotated are False, and background in both maps.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]
    known: np.ndarray


def _scored(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> Scored:
    known = np.asarray(truth) != OUTSIDE
    if known.all():
        return Scored(prediction, truth, spacing, known)
    return Scored(np.where(known, prediction, 0), np.where(known, truth, 0), spacing, known)


def choose_truth(
    dataset: store.Dataset, cases: Sequence[store.Case], source: Path | None = None
) -> str:
    """`SOURCE`, `RESTORED` or `PREPARED`: the same for all cases, as their scores are averaged.

    Without the source, a prepared label equals the source's own only where preparation did not
    resample it. It may have cropped and reoriented it; labels outside the crop are lost.

    Raises:
      UserError: the cases did not come from the given source.
    """
    if source:
        for case in cases:
            if geometry.source_grid(case) is None:
                raise UserError(
                    f"--source={source}: {dataset.path} was not prepared from files; leave it out"
                )
            label_file(case, source)
        return SOURCE
    return RESTORED if all(map(geometry.is_reindexed, cases)) else PREPARED


def label_file(case: store.Case, source: Path) -> Path:
    """The case's label in the source folder. Raises `UserError` if it is missing."""
    # After the images. A mask would follow, but no layout has both masks and labels.
    path = source / case.extra["source"][-1]
    if not path.is_file():
        raise UserError(
            f"{path}: missing, the label of {case.id}; give --source=DIR, the folder the data "
            "were prepared from, or leave it out to score against the prepared labels"
        )
    return path


def source_truth(
    dataset: store.Dataset, case: store.Case, grid: geometry.Grid, source: Path
) -> np.ndarray:
    """The source's own label as class indices uint8 [*S], on the grid of the source's image.

    Raises:
      UserError: the file cannot be read, or is not the one that was prepared.
    """
    path = label_file(case, source)
    volume = readers.read_label(path, len(grid.shape))
    canonical = geometry.canonical_grid(grid)
    # Label and image may be stored along different axes; in canonical orientation they agree.
    array, _ = geometry.to_canonical(volume.array, volume.affine)
    if array.shape != canonical.shape:
        raise UserError(
            f"{path}: shape {volume.array.shape}, but {grid.shape} when {case.id} was prepared; "
            "prepare the data again"
        )
    array = geometry.resample(array, canonical.affine, grid, "nearest")
    values = settings_of_dataset(dataset, source).values
    check_label_values(path, np.unique(array).tolist(), values)
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values)] = list(values.values())
    return table[array]


def predict_case(
    trained: Predictor,
    dataset: store.Dataset,
    case: store.Case,
    truth: str,
    source: Path | None = None,
) -> Scored:
    """Predicts a case, and brings prediction and label to the grid that `truth` names.

    Args:
      truth: from `choose_truth`.
      source: the folder of the source, for `SOURCE`.
    """
    probabilities = predictor.segment(trained, store.load_image(dataset, case))
    grid = geometry.source_grid(case)
    if truth == PREPARED or grid is None:
        prediction = predictor.label_map(trained, probabilities)
        return _scored(prediction, np.asarray(store.load_label(dataset, case)), case.spacing)
    prediction = predictor.to_source_grid(trained, probabilities, case)
    if truth == SOURCE and source is not None:
        label = source_truth(dataset, case, grid, source)
    else:
        label, _ = geometry.to_source(store.load_label(dataset, case), case)
    return _scored(prediction, label, grid.spacing)


def score_cases(
    trained: Predictor,
    dataset: store.Dataset,
    cases: Iterable[store.Case],
    truth: str,
    source: Path | None = None,
) -> tuple[list[CaseRow], np.ndarray]:
    """Predicts and scores cases; `truth` and `source` as of `predict_case`.

    Returns:
      The rows of `metrics.segmentation_scores` with `id` and `subject`, and the confusion matrix of
      all voxels, int64 [K, K].
    """
    rows: list[CaseRow] = []
    size = len(dataset.classes)
    confusion = np.zeros((size, size), np.int64)
    regions = regions_of(trained, dataset)
    for case in cases:
        prediction, label, spacing, known = predict_case(trained, dataset, case, truth, source)
        scores = metrics.segmentation_scores(
            prediction, label, dataset.classes, spacing, regions, TOLERANCE
        )
        rows += [{"id": case.id, "subject": case.subject, **row} for row in scores]
        # Plane by plane, as counting converts the labels to int64.
        for found, true, inside in zip(prediction, label, known, strict=True):
            if inside.any():
                confusion += metrics.confusion_matrix(found[inside], true[inside], size)
    return rows, confusion


def regions_of(trained: Predictor, dataset: store.Dataset) -> dict[str, tuple[int, ...]]:
    """Regions to score beside the classes: BraTS's for its classes, else those of the training."""
    begins = zip(dataset.classes, _BRATS_CLASSES, strict=False)
    if len(dataset.classes) == len(_BRATS_CLASSES) and all(
        name.lower().startswith(begin) for name, begin in begins
    ):
        return metrics.BRATS_REGIONS
    regions = (tuple(region) for region in trained.model.config.task.regions)
    # A region of one class would only repeat that class's scores.
    return {
        " + ".join(dataset.classes[index] for index in region): region
        for region in regions
        if len(region) > 1
    }


def mean_foreground(rows: Sequence[CaseRow], classes: Sequence[str]) -> list[CaseRow]:
    """A row per case: the mean of each score over the foreground classes where it is defined.

    `absent`: the truth has no foreground class; `missed`: one that it has was not found at all.
    """
    means = []
    for case in dict.fromkeys(row["id"] for row in rows):
        own = [row for row in rows if row["id"] == case and row["class"] in classes[1:]]
        mean: CaseRow = {**own[0], "class": MEAN_FOREGROUND}
        for score in metrics.SEGMENTATION_SCORES:
            values = [row[score] for row in own if not math.isnan(row[score])]
            mean[score] = float(np.mean(values)) if values else math.nan
        mean["absent"] = all(row["absent"] for row in own)
        mean["missed"] = any(row["missed"] for row in own)
        means.append(mean)
    return means


def best_median_worst(means: Sequence[CaseRow]) -> dict[str, CaseRow]:
    """Three rows of `mean_foreground` by Dice, among the cases with foreground if there are any."""
    defined = [mean for mean in means if not math.isnan(mean["dice"])] or list(means)
    ranked = sorted(defined, key=lambda mean: mean["dice"])
    return {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def summarise(
    rows: Sequence[CaseRow], confusion: np.ndarray, trained: Predictor, dataset: store.Dataset
) -> Summary:
    """Statistics of the rows over the cases, and the original's scores of the pooled voxels."""
    regions = regions_of(trained, dataset)
    classes: dict[str, dict[str, Any]] = {}
    for line in metrics.summarise([*mean_foreground(rows, dataset.classes), *rows], "subject"):
        counts = {key: line.pop(key) for key in ("cases", "absent", "missed")}
        own = classes.setdefault(line.pop("class"), counts)
        own[line.pop("score")] = line
    return {
        "tolerance_mm": TOLERANCE,
        "regions": {name: list(region) for name, region in regions.items()},
        "mean_foreground": classes.pop(MEAN_FOREGROUND),
        "scores": classes,
        "reference": reference_scores.reference_segmentation_scores(
            confusion, dataset.classes, regions
        ),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """The mean foreground scores in one line."""
    mean = summary["mean_foreground"]
    dice = mean["dice"]
    line = (
        f"mean foreground Dice {dice['mean']:.3f} ± {dice['std']:.3f} "
        f"(95 % interval of the mean {dice['low']:.3f} to {dice['high']:.3f}), "
        f"HD95 {mean['hd95']['mean']:.2f} mm, "
        f"surface Dice at {summary['tolerance_mm']:g} mm {mean['nsd']['mean']:.3f}"
    )
    if mean["absent"]:
        line += f"; excludes {mean['absent']} cases without foreground"
    return line
