import itertools

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ssl3d import metrics

NAMES = ("background", "necrotic core", "oedema", "enhancing tumour")
OVERLAPS = ("dice", "hd95", "nsd")


def noise(rng, shape):
    return rng.random(shape) < rng.choice([0, 0.03, 0.3, 0.7, 1])


def blobs(rng, shape):
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(1, 3))
    return field > np.quantile(field, rng.uniform(0.5, 0.98))


def pair(seed, longest=7):
    """A prediction, a truth and a spacing, of rank 2 or 3."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, longest + 1, rng.integers(2, 4))
    kind = rng.choice([noise, blobs])
    return kind(rng, shape), kind(rng, shape), tuple(rng.uniform(0.3, 4, shape.size))


def scores(prediction, truth, spacing, tolerance=1.0):
    (row,) = metrics.segmentation_scores(
        prediction.astype(np.uint8),
        truth.astype(np.uint8),
        ("nothing", "it"),
        spacing,
        None,
        tolerance,
    )
    return row


def assert_same(row, expected, names=OVERLAPS):
    for name in names:
        np.testing.assert_allclose(row[name], expected[name], rtol=1e-9, err_msg=name)


def boundary(mask):
    """Voxel by voxel, and without SciPy."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = voxel.copy()
            neighbour[axis] += step
            outside = not 0 <= neighbour[axis] < mask.shape[axis]
            if outside or not mask[tuple(neighbour)]:
                found.append(voxel)
                break
    return np.array(found)


@given(st.integers(0, 2**32), st.sampled_from([0.5, 1.0, 3.0]))
def test_scores_are_those_of_all_pairs_of_boundary_voxels(seed, tolerance):
    prediction, truth, spacing = pair(seed)
    row = scores(prediction, truth, spacing, tolerance)
    assert row["absent"] == (not truth.any())
    assert row["missed"] == (truth.any() and not prediction.any())
    voxel = np.prod(spacing) / 10**truth.ndim
    assert row["reference_volume"] == pytest.approx(truth.sum() * voxel)
    assert row["predicted_volume"] == pytest.approx(prediction.sum() * voxel)
    assert row["false_positive_volume"] == pytest.approx((prediction & ~truth).sum() * voxel)
    if not truth.any():
        assert all(np.isnan(row[name]) for name in OVERLAPS)
        return
    assert row["dice"] == pytest.approx(oracle.f1_score(truth.ravel(), prediction.ravel()))
    if not prediction.any():
        assert (row["dice"], row["nsd"]) == (0, 0)
        assert np.isnan(row["hd95"])
        return
    offsets = boundary(prediction)[:, None] - boundary(truth)
    distances = np.sqrt(((offsets * spacing) ** 2).sum(-1))
    nearest = distances.min(1), distances.min(0)
    assert row["hd95"] == pytest.approx(max(np.quantile(side, 0.95) for side in nearest))
    assert row["nsd"] == pytest.approx(np.mean(np.concatenate(nearest) <= tolerance))


@given(st.integers(0, 2**32), st.data())
def test_scores_know_neither_the_margin_nor_the_order_of_axes_nor_who_is_who(seed, data):
    prediction, truth, spacing = pair(seed)
    row = scores(prediction, truth, spacing)
    margin = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in spacing]
    assert scores(np.pad(prediction, margin), np.pad(truth, margin), spacing) == pytest.approx(
        row, nan_ok=True
    )
    order = data.draw(st.permutations(range(truth.ndim)))
    turned = [np.flip(mask.transpose(order), 0) for mask in (prediction, truth)]
    assert_same(scores(*turned, [spacing[axis] for axis in order]), row)
    if truth.any() and prediction.any():
        assert_same(scores(truth, prediction, spacing), row)
        assert [scores(truth, truth, spacing)[name] for name in OVERLAPS] == [1, 0, 1]


@given(st.integers(0, 2**32), st.floats(0.2, 5))
def test_scores_scale_with_the_spacing(seed, factor):
    prediction, truth, spacing = pair(seed)
    row = scores(prediction, truth, spacing, 1.3)
    larger = scores(prediction, truth, tuple(np.multiply(spacing, factor)), 1.3 * factor)
    volume = row["reference_volume"] * factor**truth.ndim
    expected = row | {"hd95": row["hd95"] * factor, "reference_volume": volume}
    assert_same(larger, expected, (*OVERLAPS, "reference_volume"))


@given(st.integers(0, 2**32))
def test_a_picture_is_a_volume_of_one_slice(seed):
    """But for its surface: all voxels of a single slice touch the outside."""
    rng = np.random.default_rng(seed)
    prediction, truth = noise(rng, (5, 6)), noise(rng, (5, 6))
    flat = scores(prediction, truth, (2, 3))
    thick = scores(prediction[..., None], truth[..., None], (2, 3, 10))
    assert_same(
        thick, flat, ("dice", "reference_volume", "predicted_volume", "false_positive_volume")
    )
    assert (thick["absent"], thick["missed"]) == (flat["absent"], flat["missed"])


def test_scores_of_shifted_boxes():
    truth = np.zeros((20, 20, 20), bool)
    truth[5:10, 5:10, 5:10] = True
    row = scores(np.roll(truth, 2, axis=2), truth, (1, 1, 3), tolerance=5.9)
    assert row["dice"] == pytest.approx(3 / 5)
    assert row["hd95"] == 6  # the end face is 25 of 98 boundary voxels, 2 slices of 3 mm away
    assert row["reference_volume"] == pytest.approx(0.375)  # 125 voxels of 3 mm^3, in ml
    assert row["false_positive_volume"] == pytest.approx(0.150)
    assert row["nsd"] < scores(np.roll(truth, 2, axis=2), truth, (1, 1, 3), 6.0)["nsd"] == 1


def test_rounding_does_not_put_a_distance_beyond_the_tolerance():
    truth = np.eye(1, 9, dtype=bool)
    row = scores(np.roll(truth, 3, axis=1), truth, (1, 0.1), tolerance=0.3)
    assert row["hd95"] > 0.3  # 3 * 0.1
    assert row["nsd"] == 1


def test_regions_are_unions_of_classes():
    prediction, truth = np.random.default_rng(0).integers(0, 4, (2, 6, 7, 8))
    rows = metrics.segmentation_scores(
        prediction, truth, NAMES, (1, 1, 2), metrics.BRATS_REGIONS, 1.5
    )
    assert [row["class"] for row in rows] == [*NAMES[1:], "WT", "TC", "ET"]
    by_name = {row["class"]: row for row in rows}
    for name, indices in {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "oedema": [2]}.items():
        masks = [sum(labels == index for index in indices) for labels in (prediction, truth)]
        assert by_name[name] | {"class": "it"} == scores(*masks, (1, 1, 2), 1.5)


@pytest.mark.parametrize(
    "change",
    [
        {"truth": np.ones((3, 4), int)},
        {"truth": np.full((3, 3), 4)},
        {"prediction": np.full((3, 3), -1)},
        {"prediction": np.ones((3, 3))},
        {"spacing": (1, 1, 1)},
        {"spacing": (1, 0)},
        {"spacing": (1, np.nan)},
        {"regions": {"all": (1, 4)}},
        {"regions": {"none": ()}},
        {"regions": {"oedema": (1, 2)}},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change):
    labels = np.ones((3, 3), int)
    fitting = {"prediction": labels, "truth": labels, "classes": NAMES, "spacing": (1, 1)}
    metrics.segmentation_scores(**fitting)
    with pytest.raises(ValueError, match=r"\w"):
        metrics.segmentation_scores(**fitting | change)


def test_scores_agree_with_monai():
    reason = "MONAI, the second opinion, is not installed"
    monai, torch = (pytest.importorskip(name, reason=reason) for name in ("monai.metrics", "torch"))
    for seed in range(200):
        prediction, truth, spacing = pair(seed, longest=24)
        row = scores(prediction, truth, spacing, 2.0)
        masks = [torch.as_tensor(mask[None, None]).float() for mask in (prediction, truth)]
        dice = monai.compute_dice(*masks).item()
        assert row["dice"] == pytest.approx(dice, abs=1e-6, nan_ok=True)
        if row["absent"] or row["missed"]:
            continue
        distance = monai.compute_hausdorff_distance(*masks, True, percentile=95, spacing=spacing)
        assert row["hd95"] == pytest.approx(distance.item(), abs=1e-3)
        share = monai.compute_surface_dice(*masks, [2.0], True, spacing=spacing)
        assert row["nsd"] == pytest.approx(share.item(), abs=1e-6)


def case_rows(dices, name="it", **flags):
    defaults = dict.fromkeys(metrics.SEGMENTATION_SCORES, 1.0) | {"absent": False, "missed": False}
    return [{"class": name} | defaults | flags | {"dice": dice} for dice in dices]


def test_summary_counts_what_it_leaves_out():
    rows = case_rows([0.2, 0.4, 0.9]) + case_rows([np.nan], absent=True)
    rows += case_rows([0.0], missed=True, hd95=np.nan) + case_rows([np.nan], "other", absent=True)
    summary = {(row["class"], row["score"]): row for row in metrics.summarise(rows)}
    dice, distance, other = summary["it", "dice"], summary["it", "hd95"], summary["other", "dice"]
    assert [dice[key] for key in ("cases", "absent", "missed", "valid")] == [5, 1, 1, 4]
    assert [distance[key] for key in ("cases", "absent", "missed", "valid")] == [5, 1, 1, 4]
    values = [0.2, 0.4, 0.9, 0]
    assert dice["mean"] == pytest.approx(np.mean(values))
    assert dice["std"] == pytest.approx(np.std(values, ddof=1))
    assert dice["median"] == pytest.approx(0.3)
    assert 0 <= dice["low"] < dice["mean"] < dice["high"] <= 0.9
    assert (other["cases"], other["valid"]) == (1, 0)
    assert all(np.isnan(other[key]) for key in ("mean", "std", "median", "low", "high"))
    single = metrics.summarise(case_rows([0.7]))[0]
    assert single["mean"] == single["median"] == pytest.approx(0.7)
    assert all(np.isnan(single[key]) for key in ("std", "low", "high"))


def test_interval_is_that_of_the_mean_and_repeats():
    values = np.random.default_rng(1).normal(0.7, 0.1, 300)
    first, again, other = (metrics.summarise(case_rows(values), seed=seed)[0] for seed in (3, 3, 4))
    assert first == again != other
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert first["low"] == pytest.approx(values.mean() - half, abs=half / 8)
    assert first["high"] == pytest.approx(values.mean() + half, abs=half / 8)


def test_cases_of_one_subject_are_drawn_together():
    """Four equal cases of each subject tell no more than one."""
    values = np.random.default_rng(2).normal(0.7, 0.1, 60)
    rows = case_rows(values.repeat(4))
    rows = [row | {"subject": f"subject {index // 4}"} for index, row in enumerate(rows)]
    summaries = metrics.summarise(rows), metrics.summarise(rows, "subject")
    summaries += (metrics.summarise(case_rows(values)),)
    alone, together, once = (summary[0]["high"] - summary[0]["low"] for summary in summaries)
    assert together == pytest.approx(once, rel=0.1)
    assert alone == pytest.approx(once / 2, rel=0.1)


def answers(seed, classes):
    rng = np.random.default_rng(seed)
    size = rng.integers(2, 40)
    labels = rng.integers(0, classes, size)
    probabilities = rng.dirichlet(np.ones(classes), size).round(1)  # with ties
    weights = rng.integers(0, 4, (3, size)) + (np.arange(size) == 0)
    return labels, probabilities.argmax(-1), probabilities, weights.astype(float)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_accuracy_and_kappa_are_those_of_scikit_learn(seed, classes):
    labels, predicted, _, weights = answers(seed, classes)
    accuracies = metrics.accuracy(labels, predicted, weights)
    kappas = metrics.quadratic_kappa(labels, predicted, classes, weights)
    for row, accuracy, kappa in zip(weights, accuracies, kappas, strict=True):
        expected = oracle.accuracy_score(labels, predicted, sample_weight=row)
        assert accuracy == pytest.approx(expected)
        seen = np.concatenate([labels[row > 0], predicted[row > 0]])
        if np.unique(seen).size == 1:
            assert np.isnan(kappa)
            continue
        expected = oracle.cohen_kappa_score(
            labels, predicted, labels=range(classes), weights="quadratic", sample_weight=row
        )
        assert kappa == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_auroc_is_that_of_scikit_learn(seed, classes):
    labels, _, probabilities, weights = answers(seed, classes)
    areas = metrics.auroc(labels, probabilities, weights)
    for row, area in zip(weights, areas, strict=True):
        expected = [
            oracle.roc_auc_score(labels == k, probabilities[:, k], sample_weight=row)
            for k in range(classes)
            if 0 < row[labels == k].sum() < row.sum()
        ]
        assert area == pytest.approx(np.mean(expected) if expected else np.nan, nan_ok=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_auroc_is_the_macro_average_and_of_two_classes_the_binary(classes):
    labels = np.arange(60) % classes
    probabilities = np.random.default_rng(0).dirichlet(np.ones(classes), 60)
    scored = probabilities[:, 1] if classes == 2 else probabilities
    expected = oracle.roc_auc_score(labels, scored, multi_class="ovr", average="macro")
    assert metrics.auroc(labels, probabilities, np.ones(60)) == pytest.approx(expected)


def test_classification_scores_with_intervals():
    labels, predicted, probabilities, _ = answers(5, 3)
    rows = {
        row["score"]: row for row in metrics.classification_scores(labels, predicted, probabilities)
    }
    assert list(rows) == ["accuracy", "kappa", "auroc"]
    assert rows["accuracy"]["value"] == pytest.approx(np.mean(labels == predicted))
    for row in rows.values():
        assert row["low"] < row["value"] < row["high"]
        assert (row["cases"], row["classes"]) == (labels.size, 3)
    doubled = [np.repeat(part, 2, axis=0) for part in (labels, predicted, probabilities)]
    subjects = np.arange(labels.size).repeat(2).astype(str)
    for row in metrics.classification_scores(*doubled, subjects):
        single = rows[row["score"]]
        assert row["value"] == pytest.approx(single["value"])
        width = row["high"] - row["low"]
        assert width == pytest.approx(single["high"] - single["low"], rel=0.15)


def test_one_class_alone_has_no_kappa_and_no_auroc():
    labels, probabilities = np.ones(8, int), np.tile([0.2, 0.7, 0.1], (8, 1))
    rows = metrics.classification_scores(labels, labels, probabilities)
    assert [row["value"] for row in rows] == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    assert [row["classes"] for row in rows] == [1, 1, 1]
    assert all(np.isnan(row["low"]) and np.isnan(row["high"]) for row in rows[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.array([0, 1, 3])},
        {"labels": np.array([0, 1])},
        {"predicted": np.array([0.0, 1.0, 2.0])},
        {"probabilities": np.full((3, 3), np.nan)},
        {"subjects": ["a"]},
    ],
    ids=str,
)
def test_answers_that_do_not_fit_are_refused(change):
    fitting = {"labels": np.arange(3), "predicted": np.arange(3), "probabilities": np.eye(3)}
    metrics.classification_scores(**fitting)
    with pytest.raises(ValueError, match=r"\w"):
        metrics.classification_scores(**fitting | change)
