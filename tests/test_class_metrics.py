"""Scores that treat all classes alike; scikit-learn is the second opinion."""

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d import class_metrics


def answers(seed, classes, size=40):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, size))
    return labels, predicted, rng.dirichlet(np.ones(classes), size)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_they_are_those_of_scikit_learn(seed, classes):
    labels, predicted, _ = answers(seed, classes)
    weights = np.random.default_rng(seed).integers(0, 3, (3, len(labels))).astype(float)
    balanced = class_metrics.balanced_accuracy(labels, predicted, classes, weights)
    for row, found in zip(weights, balanced, strict=True):
        seen = np.unique(labels[row > 0])
        recalls = oracle.recall_score(
            labels, predicted, labels=seen, average=None, sample_weight=row, zero_division=0
        )
        assert found == pytest.approx(recalls.mean())
        for k in seen:
            found = class_metrics.sensitivity(labels, predicted, k, row)
            assert found == pytest.approx(recalls[list(seen).index(k)])
            rest = labels != k
            if row[rest].sum():
                found = class_metrics.specificity(labels, predicted, k, row)
                assert found == pytest.approx(np.average(predicted[rest] != k, weights=row[rest]))


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    labels, predicted = np.array([0] * 9 + [1]), np.zeros(10, int)
    assert class_metrics.balanced_accuracy(labels, predicted, 2, np.ones(10)) == 0.5


def test_a_class_that_does_not_occur_is_undefined_and_left_out():
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    once = np.ones(3)
    assert np.isnan(class_metrics.sensitivity(labels, predicted, 2, once))
    assert class_metrics.specificity(labels, predicted, 2, once) == pytest.approx(2 / 3)
    assert class_metrics.balanced_accuracy(labels, predicted, 3, once) == 0.75


def test_scores_by_class_have_intervals():
    labels, predicted, _ = answers(3, 2, size=60)
    found = class_metrics.scores_by_class(
        labels, predicted, ("benign", "malignant"), [str(i) for i in range(60)]
    )
    assert list(found) == ["benign", "malignant"]
    assert sum(row["cases"] for row in found.values()) == 60
    for row in found.values():
        for name in ("sensitivity", "specificity"):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    # Of two classes, one's sensitivity is the other's specificity.
    assert found["benign"]["sensitivity"] == found["malignant"]["specificity"]


@pytest.mark.parametrize("name", class_metrics.SELECTIONS)
def test_every_selection_prefers_the_right_answers(name):
    labels, predicted, _ = answers(4, 3)
    right, wrong = (np.eye(3)[x] * 0.8 + 0.1 for x in (labels, predicted))
    select, once = class_metrics.SELECTIONS[name], np.ones(len(labels))
    assert select(labels, labels, right, once) == pytest.approx(1)
    assert select(labels, predicted, wrong, once) < 0.9
