"""Scores that treat all classes alike: sensitivity and specificity of each, and their balance.

Like all classification scores (`ssl3d.metrics`) they take weights, how often each case counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Integer

from ssl3d import metrics
from ssl3d.intervals import Interval, PerDraw, bootstrap_interval

# Labels, predictions and probabilities of B cases of K classes, weights [*R, B] -> [*R].
Selection = Callable[
    [
        Integer[np.ndarray, " B"],
        Integer[np.ndarray, " B"],
        Float[np.ndarray, "B K"],
        Float[np.ndarray, "*R B"],
    ],
    PerDraw,
]


class ClassScores(TypedDict):
    """One class against the rest; `cases` is how many are of this class."""

    cases: int
    sensitivity: Interval
    specificity: Interval


def sensitivity(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    of: int,
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """The share of the cases of class `of` that are predicted as it; NaN without any."""
    return _share(predicted == of, labels == of, weights)


def specificity(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    of: int,
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """The share of the other cases that are not predicted as class `of`; NaN without any."""
    return _share(predicted != of, labels != of, weights)


def balanced_accuracy(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    classes: int,
    weights: Float[np.ndarray, "*R B"],
) -> PerDraw:
    """The mean sensitivity of the classes that occur (Brodersen et al. 2010)."""
    each = np.stack([sensitivity(labels, predicted, k, weights) for k in range(classes)], axis=-1)
    defined = ~np.isnan(each)
    return np.asarray(np.where(defined, each, 0).sum(-1) / np.maximum(defined.sum(-1), 1))


def _share(
    hits: Bool[np.ndarray, " B"], among: Bool[np.ndarray, " B"], weights: Float[np.ndarray, "*R B"]
) -> PerDraw:
    return metrics.ratio(weights @ (hits & among), weights @ among)


# What can select a model: kappa for grades, which have an order, the others for any classes.
SELECTIONS: dict[str, Selection] = {
    "kappa": lambda labels, predicted, probabilities, weights: metrics.quadratic_kappa(
        labels, predicted, probabilities.shape[-1], weights
    ),
    "balanced_accuracy": lambda labels, predicted, probabilities, weights: balanced_accuracy(
        labels, predicted, probabilities.shape[-1], weights
    ),
    "auroc": lambda labels, predicted, probabilities, weights: metrics.auroc(
        labels, probabilities, weights
    ),
}


def scores_by_class(
    labels: Integer[np.ndarray, " B"],
    predicted: Integer[np.ndarray, " B"],
    classes: Sequence[str],
    subjects: Sequence[str],
    seed: int = 0,
) -> dict[str, ClassScores]:
    """Sensitivity and specificity of each class, with 95 % bootstrap intervals over subjects.

    Args:
      classes: names of the class indices.
      subjects: [B], groups of cases in the bootstrap.
      seed: of the bootstrap.
    """
    units, once = np.asarray(subjects), np.ones(len(labels))

    def interval(share: Callable[..., PerDraw], of: int) -> Interval:
        low, high = bootstrap_interval(lambda w: share(labels, predicted, of, w), units, seed)
        return {"value": float(share(labels, predicted, of, once)), "low": low, "high": high}

    return {
        name: {
            "cases": int((labels == of).sum()),
            "sensitivity": interval(sensitivity, of),
            "specificity": interval(specificity, of),
        }
        for of, name in enumerate(classes)
    }
