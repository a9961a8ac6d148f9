"""Scores of segmentations and classifications.

An undefined score is NaN and counted as such, never silently 0 or 1. The scores of the paper's
released code are in `ssl3d.reference_scores`.

Every classification score takes weights, how often each case counts: a bootstrap draw is one of R
rows of weights, so that thousands of draws take one pass over the cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Real, Shaped
from scipy import ndimage, spatial

from ssl3d.intervals import PerDraw, bootstrap_interval

# Unions of the classes background, necrotic core, oedema, enhancing tumour (BraTS 2012-2020).
BRATS_REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
SegmentationScore = Literal[
    "dice", "hd95", "nsd", "reference_volume", "predicted_volume", "false_positive_volume"
]
SEGMENTATION_SCORES: tuple[SegmentationScore, ...] = get_args(SegmentationScore)
# The scores of one class or region of one case, see `segmentation_scores`.
MaskRow = TypedDict(
    "MaskRow",
    {
        "class": str,
        "dice": float,
        "hd95": float,
        "nsd": float,
        "reference_volume": float,
        "predicted_volume": float,
        "false_positive_volume": float,
        "absent": bool,
        "missed": bool,
    },
)
# A distance that exceeds the tolerance by rounding alone (3 * 0.1 > 0.3) is within it.
_ROUNDING = 1e-6


class CaseScore(TypedDict):
    """A score over all cases, see `classification_scores`."""

    score: str
    value: float
    low: float
    high: float
    cases: int
    classes: int


def segmentation_scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
    spacing: Sequence[float],
    regions: Mapping[str, Sequence[int]] | None = None,
    tolerance: float = 1.0,
) -> list[MaskRow]:
    """The scores of one case: a row per foreground class, then per region.

    Args:
      prediction: int [*S], class indices; 0 is the background.
      truth: int [*S].
      classes: names in the order of their indices, background first.
      spacing: mm along each axis.
      regions: name -> the indices of the classes that form it.
      tolerance: of the normalised surface Dice, in mm.

    Returns:
      Rows with `class`, the scores and two flags:
        dice: 2 |P and T| / (|P| + |T|).
        hd95: mm, see `hd95`.
        nsd: see `surface_dice`.
        reference_volume, predicted_volume, false_positive_volume: ml (2D: cm^2).
        absent: the truth is empty; `dice`, `hd95` and `nsd` are NaN, and the predicted volume is
          in `false_positive_volume`.
        missed: only the prediction is empty; `dice` and `nsd` are 0 and `hd95` is NaN.

    Raises:
      ValueError: shapes, labels, spacing or regions do not fit each other.
    """
    _check_maps(prediction, truth, len(classes))
    if len(spacing) != truth.ndim or not all(side > 0 for side in spacing):
        raise ValueError(f"a spacing {spacing} for a label map {truth.shape}")
    regions = dict(regions or {})
    _check_indices(len(classes), *map(np.asarray, regions.values()))
    if set(regions) & set(classes):
        raise ValueError(f"regions {sorted(regions)} with the names of classes")
    unions = {name: (index,) for index, name in enumerate(classes) if index > 0} | regions
    return [
        _mask_row(name, np.isin(prediction, indices), np.isin(truth, indices), spacing, tolerance)
        for name, indices in unions.items()
    ]


def _mask_row(
    name: str,
    prediction: Bool[np.ndarray, "*S"],
    truth: Bool[np.ndarray, "*S"],
    spacing: Sequence[float],
    tolerance: float,
) -> MaskRow:
    predicted, true = np.count_nonzero(prediction), np.count_nonzero(truth)
    common = np.count_nonzero(prediction & truth)
    voxel = float(np.prod(np.divide(spacing, 10)))  # cm^3 are ml
    row: MaskRow = {
        "class": name,
        "dice": 2 * common / (predicted + true) if true else np.nan,
        "hd95": np.nan,
        "nsd": 0.0 if true else np.nan,
        "reference_volume": true * voxel,
        "predicted_volume": predicted * voxel,
        "false_positive_volume": (predicted - common) * voxel,
        "absent": not true,
        "missed": bool(true and not predicted),
    }
    if true and predicted:
        distances = surface_distances(prediction, truth, spacing)
        row |= {"hd95": hd95(*distances), "nsd": surface_dice(*distances, tolerance)}
    return row


def surface_distances(
    prediction: Bool[np.ndarray, "*S"], truth: Bool[np.ndarray, "*S"], spacing: Sequence[float]
) -> tuple[Float[np.ndarray, " predicted"], Float[np.ndarray, " true"]]:
    """Distances in mm from each mask's boundary voxels to the nearest ones of the other mask.

    A boundary voxel belongs to the mask and shares a face with a voxel that does not; outside the
    image no voxel does. Distances are between voxel centres.

    Masks must not be empty. Returns the distances from the prediction's boundary voxels and those
    from the truth's.
    """
    # Cropping changes nothing: the part cut away is background in both masks, like the outside.
    (box,) = ndimage.find_objects((prediction | truth).view(np.int8))
    points = [
        np.argwhere(mask & np.logical_not(ndimage.binary_erosion(mask)))
        * np.asarray(spacing, float)
        for mask in (prediction[box], truth[box])
    ]
    trees = [spatial.KDTree(cloud) for cloud in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def hd95(
    from_prediction: Float[np.ndarray, " predicted"], from_truth: Float[np.ndarray, " true"]
) -> float:
    """The larger of the 95th percentiles of the two sets of `surface_distances`, in mm.

    Defined as MONAI's `compute_hausdorff_distance(percentile=95)`; others report the percentile of
    the union of both sets.
    """
    return float(max(np.percentile(from_prediction, 95), np.percentile(from_truth, 95)))


def surface_dice(
    from_prediction: Float[np.ndarray, " predicted"],
    from_truth: Float[np.ndarray, " true"],
    tolerance: float,
) -> float:
    """The share of both masks' boundary voxels within `tolerance` mm of the other mask's boundary.

    Defined as MONAI's `compute_surface_dice` without subvoxels: boundary voxels are counted, not
    weighted by their surface area.
    """
    distances = np.concatenate([from_prediction, from_truth])
    return float(np.mean(distances <= tolerance * (1 + _ROUNDING)))


def summarise(rows: Sequence[Mapping], unit: str | None = None, seed: int = 0) -> list[dict]:
    """The rows of `segmentation_scores` of all cases -> a row per class and score.

    Args:
      rows: of all cases, concatenated.
      unit: the key of a row that groups cases in the bootstrap, e.g. "subject" if the caller added
        it; default: each case by itself.
      seed: of the bootstrap.

    Returns:
      Rows with `class`, `score`, the number of `cases` and, among these, of `absent`, `missed` and
      `valid` ones (the score is not NaN), and over the valid ones `mean`, `std` (of a sample; NaN
      for a single case), `median`, and `low` and `high`, the 95 % bootstrap interval of the mean.
    """
    summary = []
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        units = np.array([row[unit] if unit else index for index, row in enumerate(own)])
        counts = {"cases": len(own)}
        counts |= {flag: sum(row[flag] for row in own) for flag in ("absent", "missed")}
        for score in SEGMENTATION_SCORES:
            values = np.array([row[score] for row in own], float)
            valid = ~np.isnan(values)
            summary.append(
                {"class": name, "score": score, **counts, "valid": int(valid.sum())}
                | _moments(values[valid], units[valid], seed)
            )
    return summary


def _moments(
    values: Float[np.ndarray, " B"], units: Shaped[np.ndarray, " B"], seed: int
) -> dict[str, float]:
    if not values.size:
        return dict.fromkeys(("mean", "std", "median", "low", "high"), np.nan)
    low, high = bootstrap_interval(lambda weights: _mean(values, weights), units, seed)
    std = float(values.std(ddof=1)) if values.size > 1 else np.nan
    mean, median = float(values.mean()), float(np.median(values))
    return {"mean": mean, "std": std, "median": median, "low": low, "high": high}


def classification_scores(
    labels: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    subjects: Sequence[str] | np.ndarray | None = None,
    seed: int = 0,
) -> list[CaseScore]:
    """Accuracy, quadratically weighted kappa and AUROC of all cases, with intervals.

    Args:
      labels: int [B], at least one.
      predicted: int [B]; an ordinal head does not predict the class of the largest probability.
      probabilities: [B, K].
      subjects: [B], groups of cases in the bootstrap; default: each case by itself.
      seed: of the bootstrap.

    Returns:
      A row per score: its value, the 95 % bootstrap interval `low` and `high`, the number of cases
      and of classes among the labels.

    Raises:
      ValueError: shapes or labels do not fit each other, or there is no case.
    """
    size, classes = probabilities.shape
    units = np.arange(size) if subjects is None else np.asarray(subjects)
    if not labels.shape == predicted.shape == units.shape == (size,):
        raise ValueError(f"{size} probabilities, {labels.shape} labels, {predicted.shape} answers")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities that are not finite")
    _check_indices(classes, labels, predicted)
    scores = {
        "accuracy": lambda weights: accuracy(labels, predicted, weights),
        "kappa": lambda weights: quadratic_kappa(labels, predicted, classes, weights),
        "auroc": lambda weights: auroc(labels, probabilities, weights),
    }
    present = np.unique(labels).size
    rows: list[CaseScore] = []
    for name, statistic in scores.items():
        low, high = bootstrap_interval(statistic, units, seed)
        value = float(statistic(np.ones(size)))
        rows.append(
            {
                "score": name,
                "value": value,
                "low": low,
                "high": high,
                "cases": size,
                "classes": present,
            }
        )
    return rows


def accuracy(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """The share of cases predicted correctly."""
    return _mean(labels == predicted, weights)


def quadratic_kappa(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    classes: int,
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """Cohen's kappa with quadratic weights over `classes` grades.

    The list of grades is fixed: one that does not occur keeps its place. NaN if labels and
    predictions all have the same class.
    """
    grades = np.arange(classes)
    penalty = np.subtract.outer(grades, grades) ** 2.0
    true = weights @ (labels[:, None] == grades)
    answered = weights @ (predicted[:, None] == grades)
    observed = weights @ penalty[labels, predicted]
    by_chance = np.einsum("...i,ij,...j->...", true, penalty, answered)
    return 1 - ratio(observed * weights.sum(-1), by_chance)


def auroc(
    labels: Integer[np.ndarray, " B"],
    probabilities: Float[np.ndarray, "B K"],
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """Area under the ROC curve, one class against the rest, averaged over classes.

    Classes that all cases or no case have are left out; NaN if none remains. For two classes it is
    the binary AUROC.
    """
    areas = np.stack(
        [_area(labels == k, column, weights) for k, column in enumerate(probabilities.T)], axis=-1
    )
    defined = ~np.isnan(areas)
    return ratio(np.where(defined, areas, 0).sum(-1), defined.sum(-1))


def _area(
    positive: Bool[np.ndarray, " B"],
    scores: Float[np.ndarray, " B"],
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """The share of (positive, negative) pairs in the right order; ties count half."""
    order = np.argsort(scores)
    _, starts = np.unique(scores[order], return_index=True)
    weights, positive = weights[..., order], positive[order]
    positives = np.add.reduceat(weights * positive, starts, axis=-1)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=-1)
    below = negatives.cumsum(-1) - negatives / 2
    return ratio((positives * below).sum(-1), positives.sum(-1) * negatives.sum(-1))


def _mean(values: Shaped[np.ndarray, " B"], weights: Float[np.ndarray, "*R B"]) -> PerDraw:
    return weights @ values / weights.sum(-1)


def ratio(
    numerator: Real[np.ndarray, "*R"] | np.number, denominator: Real[np.ndarray, "*R"] | np.number
) -> Float[np.ndarray, "*R"]:
    """NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, np.where(denominator > 0, denominator, np.nan)))


def confusion_matrix(
    prediction: np.ndarray, truth: np.ndarray, classes: int
) -> Int[np.ndarray, "{classes} {classes}"]:
    """Voxels per true class (row) and predicted class (column).

    The matrices of several cases add up to the matrix of their pooled voxels.

    Prediction and truth are class indices, int [*S]; `classes` includes the background.

    Raises:
      ValueError: different shapes, or an index outside the classes.
    """
    _check_maps(prediction, truth, classes)
    pairs = truth.astype(np.int64).ravel() * classes + prediction.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _check_maps(prediction: np.ndarray, truth: np.ndarray, classes: int) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"a prediction {prediction.shape} and a reference {truth.shape}")
    _check_indices(classes, prediction, truth)


def _check_indices(classes: int, *maps: np.ndarray) -> None:
    for indices in maps:
        if not np.issubdtype(indices.dtype, np.integer) or not indices.size:
            raise ValueError(f"whole numbers wanted, not {indices.dtype} of shape {indices.shape}")
        if indices.min() < 0 or indices.max() >= classes:
            raise ValueError(
                f"index {indices.min()} or {indices.max()} is none of {classes} classes"
            )
