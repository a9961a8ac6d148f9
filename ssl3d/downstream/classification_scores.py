"""Scores of classifications: predictions per case, and their summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ssl3d import class_metrics, metrics, reference_scores
from ssl3d.data import store
from ssl3d.downstream import predictor
from ssl3d.downstream.predictor import Predictor
from ssl3d.intervals import Interval, PerDraw, bootstrap_interval

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "quadratic kappa",
    "auroc": "AUROC",
}


class CaseRow(TypedDict):
    """The prediction of one case; `probability` is float32 [K]."""

    id: str
    subject: str
    grade: int | None
    predicted: int
    probability: np.ndarray


class Summary(TypedDict):
    """The part of `summary.json` about scores.

    Attributes:
      scores: those of `TITLES`.
      by_class: sensitivity and specificity of each class against the rest, by its name.
      largest_class_share: accuracy of the constant prediction that is right most often.
      confusion: cases by true (row) and predicted grade (column).
      reference: the original code's scores.
    """

    scores: dict[str, Interval]
    by_class: dict[str, class_metrics.ClassScores]
    largest_class_share: float
    confusion: list[list[int]]
    reference: dict[str, float]


def score_cases(
    trained: Predictor, dataset: store.Dataset, cases: Sequence[store.Case]
) -> Iterator[CaseRow]:
    """Predicts the cases, one after another."""
    images = (store.load_image(dataset, case) for case in cases)
    for case, probability in zip(cases, predictor.classify(trained, images), strict=True):
        yield {
            "id": case.id,
            "subject": case.subject,
            "grade": case.grade,
            "predicted": int(predictor.grade_of(trained, probability)),
            "probability": probability,
        }


def as_columns(row: CaseRow, classes: Sequence[str]) -> dict[str, Any]:
    """The row with one column per class in place of `probability`, for `cases.csv`."""
    named = {
        f"probability {name}": float(p) for name, p in zip(classes, row["probability"], strict=True)
    }
    return {key: value for key, value in row.items() if key != "probability"} | named


def scores_of(
    grades: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    subjects: Sequence[str],
) -> dict[str, Interval]:
    """The scores of `TITLES`, in its order, with bootstrap intervals over subjects.

    Grades and predicted int [B], probabilities [B, K], subjects [B].
    """
    lines = metrics.classification_scores(grades, predicted, probabilities, subjects)
    found: dict[str, Interval] = {
        line["score"]: {"value": line["value"], "low": line["low"], "high": line["high"]}
        for line in lines
    }

    def balanced(weights: np.ndarray) -> PerDraw:
        return class_metrics.balanced_accuracy(grades, predicted, probabilities.shape[1], weights)

    low, high = bootstrap_interval(balanced, np.asarray(subjects))
    value = float(balanced(np.ones(len(grades))))
    found["balanced_accuracy"] = {"value": value, "low": low, "high": high}
    return {name: found[name] for name in TITLES}


def summarise(rows: Sequence[CaseRow], classes: Sequence[str]) -> Summary:
    """The scores of all cases.

    The original's scores read grades from ordinal bits: here, whether the summed probability from
    a grade on exceeds one half. For a softmax head that may differ from its most probable class.
    """
    grades = np.array([row["grade"] for row in rows])
    predicted = np.array([row["predicted"] for row in rows])
    probabilities = np.stack([row["probability"] for row in rows])
    bits = (grades[:, None] >= np.arange(len(classes))).astype(float)
    reached = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    subjects = [row["subject"] for row in rows]
    return {
        "scores": scores_of(grades, predicted, probabilities, subjects),
        "by_class": class_metrics.scores_by_class(grades, predicted, classes, subjects),
        "largest_class_share": float(np.max(np.bincount(grades)) / len(grades)),
        "confusion": metrics.confusion_matrix(predicted, grades, len(classes)).tolist(),
        "reference": reference_scores.reference_ordinal_scores(bits, reached),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """The scores in one line."""
    parts = [
        f"{TITLES[key]} {score['value']:.3f} (95 % {score['low']:.3f} to {score['high']:.3f})"
        for key, score in summary["scores"].items()
    ]
    classes = (
        f"{name} {each['sensitivity']['value']:.3f} / {each['specificity']['value']:.3f}"
        for name, each in summary["by_class"].items()
    )
    parts.append(f"sensitivity / specificity: {', '.join(classes)}")
    parts.append(f"share of the largest class {summary['largest_class_share']:.3f}")
    return ", ".join(parts)
