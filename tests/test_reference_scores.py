"""The released code's scores, as it computes them."""

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d import metrics, reference_scores

NAMES = ("background", "necrotic core", "oedema", "enhancing tumour")


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_reference_scores_are_those_of_all_voxels_pooled(seed, classes):
    rng = np.random.default_rng(seed)
    present = rng.integers(1, classes + 1)  # the last classes may occur nowhere
    prediction, truth = rng.integers(0, present, (2, 3, 4, 5))
    confusion = sum(map(lambda *case: metrics.confusion_matrix(*case, classes), prediction, truth))
    expected = oracle.confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(classes))
    np.testing.assert_array_equal(confusion, expected)
    names = [f"class {k}" for k in range(classes)]
    found = reference_scores.reference_segmentation_scores(
        confusion, names, {"union": (1, classes - 1)}
    )
    jaccard = oracle.jaccard_score(truth.ravel(), prediction.ravel(), average=None)
    assert found["reference_jaccard"] == pytest.approx(jaccard.mean())
    assert found["reference_dice"] == pytest.approx(np.mean(2 * jaccard / (1 + jaccard)))
    for k, name in enumerate(names):
        seen = k in prediction or k in truth
        pooled = oracle.f1_score(truth.ravel() == k, prediction.ravel() == k) if seen else np.nan
        assert found[f"reference_dice_{name}"] == pytest.approx(pooled, nan_ok=True)
    union = [np.isin(labels.ravel(), (1, classes - 1)) for labels in (truth, prediction)]
    expected = oracle.f1_score(*union, average="macro")
    assert found["reference_dice_union"] == pytest.approx(expected)


@pytest.mark.parametrize(("true", "reads"), [(0.6, 0.8), (0.7, 0.85), (0.8, 0.9)])
def test_the_background_inflates_the_original_brats_scores(true, reads):
    """With one voxel in a hundred tumour."""
    tumour, hit = 1000, round(true * 1000)
    confusion = np.zeros((4, 4), int)
    confusion[3, 3] = hit
    confusion[3, 0] = confusion[0, 3] = tumour - hit
    confusion[0, 0] = 100 * tumour - 2 * tumour + hit
    found = reference_scores.reference_segmentation_scores(confusion, NAMES, metrics.BRATS_REGIONS)
    for name in metrics.BRATS_REGIONS:
        assert found[f"reference_dice_{name}"] == pytest.approx(reads, abs=0.005)
    assert found["reference_dice_enhancing tumour"] == pytest.approx(true)


def test_original_grades_drop_what_has_no_bit():
    codes = np.tril(np.ones((5, 5)))
    truth = codes[[0, 1, 2, 3, 4, 4, 0]]
    outputs = truth * 0.9
    outputs[4] = 0.5  # not above it: grade -1
    outputs[5] = [0.9, 0, 0.9, 0, 0.6]  # three bits in any order: grade 2
    found = reference_scores.reference_ordinal_scores(truth, outputs)
    kappa = oracle.cohen_kappa_score([0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 2, 0], weights="quadratic")
    assert found["reference_qw_kappa_kaggle"] == pytest.approx(kappa)
    assert found["reference_cat_acc_kaggle"] == pytest.approx(5 / 7)
    assert found["reference_bin_accuracy"] == pytest.approx(1 - (5 + 2) / 35)
    nothing = reference_scores.reference_ordinal_scores(truth, np.zeros_like(truth))
    assert np.isnan(nothing["reference_qw_kappa_kaggle"])
    assert nothing["reference_cat_acc_kaggle"] == 0


@given(st.integers(0, 2**32))
def test_original_grades_are_scored_as_scikit_learn_scores_them(seed):
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, 30)
    truth, outputs = np.tril(np.ones((5, 5)))[grades], rng.random((30, 5))
    answered = (outputs > 0.5).sum(-1) - 1
    found = reference_scores.reference_ordinal_scores(truth, outputs)
    kappa = oracle.cohen_kappa_score(grades, answered, labels=range(5), weights="quadratic")
    assert found["reference_qw_kappa_kaggle"] == pytest.approx(kappa)
    assert found["reference_cat_acc_kaggle"] == oracle.accuracy_score(grades, answered)
