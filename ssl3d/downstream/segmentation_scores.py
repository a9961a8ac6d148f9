"""A trained network against the truth: predictions, the grid they are scored on, the scores.

One case is in memory at a time; what is pooled over cases is the sum of their confusion matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl3d import metrics
from ssl3d.data import geometry, readers, store
from ssl3d.data.preparation.case import check_label_values, settings_of_dataset
from ssl3d.downstream import predictor
from ssl3d.downstream.predictor import Trained
from ssl3d.errors import UserError

# Where a segmentation is scored.
SOURCE = "the source's own labels on the source's grid"
RESTORED = "the prepared labels brought back to the source's grid"
PREPARED = "the prepared labels on the prepared grid"

TOLERANCE = 1.0  # mm, of the normalised surface Dice
MEAN_FOREGROUND = "mean foreground"
# How the classes begin that `metrics.BRATS_REGIONS` numbers, here and in the phantom brain. Others
# number them otherwise: Task01 of the Decathlon has oedema first.
_BRATS_CLASSES = ("background", "necro", "oedema", "enhancing")
_INTERVAL = ("value", "low", "high")


class Scored(NamedTuple):
    """A case's prediction beside its truth, both int [*S] of class indices on one grid.

    Attributes:
      spacing: of the grid, in mm.
    """

    prediction: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]


def choose_grid(
    dataset: store.Dataset, cases: Sequence[store.Case], source: Path | None = None
) -> str:
    """`SOURCE`, `RESTORED` or `PREPARED`: the same for all cases, as their scores are averaged.

    Without the source, a prepared label is the source's own only where preparation has not
    resampled it (it may have cropped and turned it, and a label outside the crop is lost).

    Raises:
      UserError: a source is given, but is not where the cases came from.
    """
    if source:
        for case in cases:
            if predictor.source_grid(case) is None:
                raise UserError(
                    f"--source={source}: {dataset.path} was not prepared from files; leave it out"
                )
            label_file(case, source)
        return SOURCE
    return RESTORED if all(map(predictor.is_reindexed, cases)) else PREPARED


def label_file(case: store.Case, source: Path) -> Path:
    """Where the case's label lies in the source. Raises `UserError` where it does not."""
    # After the images; a mask would follow, but no layout has masks beside labels.
    path = source / case.extra["source"][-1]
    if not path.is_file():
        raise UserError(
            f"{path}: missing, the label of {case.id}; give with --source the folder that "
            "ssl3d.prepare was given, or leave it out to score against the prepared labels"
        )
    return path


def source_truth(dataset: store.Dataset, case: store.Case, source: Path) -> np.ndarray:
    """The source's own label as class indices uint8 [*S], on the grid of the source's image.

    Raises:
      UserError: the file cannot be read, or is not the one that was prepared.
    """
    path, grid = label_file(case, source), predictor.source_grid(case)
    volume = readers.read_label(path, len(grid.shape))
    canonical = geometry.canonical_grid(grid)
    # The label may be stored along other axes than the image; canonical, they are alike.
    array, _ = geometry.to_canonical(volume.array, volume.affine)
    if array.shape != canonical.shape:
        raise UserError(
            f"{path}: shape {volume.array.shape}, which was {grid.shape} when {case.id} was "
            "prepared; prepare the data again"
        )
    array = geometry.resample(array, canonical.affine, grid, "nearest")
    values = settings_of_dataset(dataset, source).values
    check_label_values(path, np.unique(array).tolist(), values)
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values)] = list(values.values())
    return table[array]


def predict_case(
    trained: Trained, dataset: store.Dataset, case: store.Case, grid: str, source: Path | None
) -> Scored:
    """Predicts a case, and brings prediction and truth to the grid of `choose_grid`."""
    probabilities = predictor.segment(trained, store.load_image(dataset, case))
    if grid == PREPARED:
        answer = predictor.label_map(trained, probabilities)
        return Scored(answer, np.asarray(store.load_label(dataset, case)), case.spacing)
    answer = predictor.to_source_grid(trained, probabilities, case)
    if grid == SOURCE:
        truth = source_truth(dataset, case, source)
    else:
        truth, _ = geometry.to_source(store.load_label(dataset, case), case)
    return Scored(answer, truth, predictor.source_grid(case).spacing)


def score_segmentations(
    trained: Trained,
    dataset: store.Dataset,
    cases: Iterable[store.Case],
    grid: str,
    source: Path | None = None,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows of `metrics.segmentation_scores` of all cases, with `id` and `subject`.

    Returns:
      The rows, and the confusion matrix of all voxels, int64 [K, K].
    """
    rows = []
    size = len(dataset.classes)
    confusion = np.zeros((size, size), np.int64)
    regions = regions_of(trained, dataset)
    for case in cases:
        answer, truth, spacing = predict_case(trained, dataset, case, grid, source)
        scores = metrics.segmentation_scores(
            answer, truth, dataset.classes, spacing, regions, TOLERANCE
        )
        rows += [{"id": case.id, "subject": case.subject} | row for row in scores]
        for planes in zip(answer, truth, strict=True):  # counting makes int64 of what it counts
            confusion += metrics.confusion_matrix(*planes, size)
    return rows, confusion


def regions_of(trained: Trained, dataset: store.Dataset) -> dict[str, tuple[int, ...]]:
    """Regions to score beside the classes: BraTS's of its classes, else those that were trained."""
    begins = zip(dataset.classes, _BRATS_CLASSES, strict=False)
    if len(dataset.classes) == len(_BRATS_CLASSES) and all(
        name.lower().startswith(begin) for name, begin in begins
    ):
        return metrics.BRATS_REGIONS
    regions = (tuple(region) for region in trained.model.config.task.regions)
    # A region of one class has that class's scores.
    return {
        " + ".join(dataset.classes[index] for index in region): region
        for region in regions
        if len(region) > 1
    }


def mean_foreground(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[dict]:
    """A row for each case: the mean of each score over the foreground classes where it is defined.

    `absent`: the truth has none of them; `missed`: one that it has was not found at all.
    """
    means = []
    for case in dict.fromkeys(row["id"] for row in rows):
        own = [row for row in rows if row["id"] == case and row["class"] in classes[1:]]
        mean = {"id": case, "subject": own[0]["subject"], "class": MEAN_FOREGROUND}
        for score in metrics.SEGMENTATION_SCORES:
            values = [row[score] for row in own if not math.isnan(row[score])]
            mean[score] = float(np.mean(values)) if values else math.nan
        mean["absent"] = all(row["absent"] for row in own)
        mean["missed"] = any(row["missed"] for row in own)
        means.append(mean)
    return means


def summarise_segmentations(
    rows: Sequence[Mapping[str, Any]],
    confusion: np.ndarray,
    trained: Trained,
    dataset: store.Dataset,
) -> dict[str, Any]:
    """What `summary.json` says of the scores: of each class and region, their mean, the pooled."""
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
        "reference": metrics.reference_segmentation_scores(confusion, dataset.classes, regions),
    }


def score_classifications(
    trained: Trained, dataset: store.Dataset, cases: Sequence[store.Case]
) -> Iterator[dict[str, Any]]:
    """A row for each case: `id`, `subject`, `grade`, `predicted`, `probability` float [K]."""
    images = (store.load_image(dataset, case) for case in cases)
    for case, probability in zip(cases, predictor.classify(trained, images), strict=True):
        yield {
            "id": case.id,
            "subject": case.subject,
            "grade": case.grade,
            "predicted": int(predictor.grade_of(trained, probability)),
            "probability": probability,
        }


def summarise_classifications(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, Any]:
    """What `summary.json` says of the scores, and of the confusion of grades.

    The original's scores read grades from ordinal bits: here, whether a grade is reached, with
    the sum of the probabilities from it on. Of a softmax head that is another answer than its
    likeliest class.
    """
    grades = np.array([row["grade"] for row in rows])
    predicted = np.array([row["predicted"] for row in rows])
    probabilities = np.stack([row["probability"] for row in rows])
    subjects = [row["subject"] for row in rows]
    lines = metrics.classification_scores(grades, predicted, probabilities, subjects)
    bits = (grades[:, None] >= np.arange(len(classes))).astype(float)
    reached = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    return {
        "scores": {line["score"]: {key: line[key] for key in _INTERVAL} for line in lines},
        "largest_class_share": float(np.bincount(grades).max() / len(grades)),
        "confusion": metrics.confusion_matrix(predicted, grades, len(classes)).tolist(),
        "reference": metrics.reference_ordinal_scores(bits, reached),
    }
