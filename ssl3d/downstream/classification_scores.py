"""Scores of classifications: predictions per case, and their summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ssl3d import metrics, reference_scores
from ssl3d.data import store
from ssl3d.downstream import predictor
from ssl3d.downstream.contract import Interval
from ssl3d.downstream.predictor import Predictor

TITLES = {"accuracy": "accuracy", "kappa": "quadratic kappa", "auroc": "AUROC"}


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
      scores: accuracy, kappa, auroc.
      largest_class_share: accuracy of the constant prediction that is right most often.
      confusion: cases by true (row) and predicted grade (column).
      reference: the original code's scores.
    """

    scores: dict[str, Interval]
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
    """Accuracy, quadratic kappa and AUROC with bootstrap intervals over subjects.

    Grades and predicted int [B], probabilities [B, K], subjects [B].
    """
    lines = metrics.classification_scores(grades, predicted, probabilities, subjects)
    return {
        line["score"]: {"value": line["value"], "low": line["low"], "high": line["high"]}
        for line in lines
    }


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
    return {
        "scores": scores_of(grades, predicted, probabilities, [row["subject"] for row in rows]),
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
    parts.append(f"the largest class is {summary['largest_class_share']:.3f} of the cases")
    return ", ".join(parts)
