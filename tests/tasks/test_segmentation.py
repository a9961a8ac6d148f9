import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d import tasks
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.tasks import segmentation
from ssl3d.training import loop, run_log

BRATS = ((1, 2, 3), (1, 3), (3,))
LABELS = tasks.Labels(("background", "bright"))


def belongs(regions=(), classes=4):
    return segmentation.members(regions, classes)


def logits_of(label, classes, certainty=20.0):
    """Logits that answer with `label`."""
    return certainty * (jax.nn.one_hot(label, classes) - 0.5)


def random_labels(seed=0, shape=(2, 6, 6, 6), classes=4):
    return np.random.default_rng(seed).integers(0, classes, shape)


# The loss.


def test_the_right_answer_costs_nothing_and_scores_one():
    label = random_labels()
    loss, metrics = segmentation.loss(
        (logits_of(label, 4),), {"label": jnp.asarray(label)}, belongs()
    )
    np.testing.assert_allclose(loss, 0, atol=1e-3)
    total, count = metrics["dice"]
    np.testing.assert_array_equal(count, 3)
    np.testing.assert_allclose(total, 3, rtol=1e-6)


def test_loss_and_dice_by_hand():
    """Soft Dice and cross-entropy of one example, written out."""
    label = random_labels(1, (1, 4, 5))
    logits = np.random.default_rng(2).normal(size=(1, 4, 5, 4)).astype(np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    truth = np.eye(4)[label[0]]
    entropy = -np.log((p * truth).sum(-1)).mean()
    dice = [
        (2 * (p[..., k] * truth[..., k]).sum() + 1) / (p[..., k].sum() + truth[..., k].sum() + 1)
        for k in (1, 2, 3)
    ]
    loss, metrics = segmentation.loss(
        (jnp.asarray(logits),), {"label": jnp.asarray(label)}, belongs()
    )
    assert float(loss[0]) == pytest.approx(1 - np.mean(dice) + entropy, rel=1e-5)
    answer = logits[0].argmax(-1)
    hard = [
        2 * ((answer == k) & (label[0] == k)).sum() / ((answer == k).sum() + (label[0] == k).sum())
        for k in (1, 2, 3)
    ]
    assert float(metrics["dice"][0][0]) == pytest.approx(np.sum(hard), rel=1e-5)


def test_the_score_of_figure_5_by_hand():
    """Soft Dice of all classes, the background too; voxels outside the image count for nothing."""
    label = random_labels(3, (2, 4, 5))
    label[:, 0] = segmentation.OUTSIDE
    p = np.random.default_rng(4).dirichlet(np.ones(4), (2, 4, 5)).astype(np.float32)
    found = segmentation.reference_soft_dice(jnp.asarray(p), jnp.asarray(label))
    for one, own, value in zip(label[:, 1:], p[:, 1:], found, strict=True):
        truth = np.eye(4)[one]
        dice = 2 * (truth * own).sum((0, 1)) / (truth.sum((0, 1)) + own.sum((0, 1)))
        assert float(value) == pytest.approx(dice.mean(), rel=1e-4)


@given(seed=st.integers(0, 1000))
def test_what_is_outside_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    label = random_labels(seed, (1, 4, 4))
    label[0, :2] = segmentation.OUTSIDE
    logits = rng.normal(size=(2, 1, 4, 4, 4)).astype(np.float32)
    logits[1, :, 2:] = logits[0, :, 2:]
    answers = [
        segmentation.loss((jnp.asarray(one),), {"label": jnp.asarray(label)}, belongs())
        for one in logits
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *answers)


def test_a_class_that_is_not_there_is_fine_and_not_counted():
    label = np.zeros((2, 4, 4), int)
    label[1, 0] = 1
    loss, metrics = segmentation.loss(
        (jnp.zeros((2, 4, 4, 4)),), {"label": jnp.asarray(label)}, belongs()
    )
    assert np.isfinite(loss).all()
    np.testing.assert_array_equal(metrics["dice"][1], [0, 1])
    np.testing.assert_array_equal(metrics["dice"][0][0], 0)
    gradient = jax.grad(
        lambda x: segmentation.loss((x,), {"label": jnp.asarray(label)}, belongs())[0].sum()
    )(jnp.zeros((2, 4, 4, 4)))
    assert np.isfinite(gradient).all()


@given(seed=st.integers(0, 1000), regions=st.sampled_from([(), BRATS]))
def test_a_class_that_is_not_there_is_the_entropys_alone(seed, regions):
    """Else a small class would best be answered nowhere, where most crops are without it."""
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(1, 6, 6, 3 if regions else 4)))
    label = np.full((1, 6, 6), 1)
    label[0, :3] = 0
    members = belongs(regions)
    truth = members.T[label].astype(np.float32)
    if regions:
        answer = jax.nn.sigmoid(logits)
        costs = -(truth * jnp.log(answer) + (1 - truth) * jnp.log(1 - answer))
        present = [k for k, region in enumerate(regions) if 1 in region]
        entropy = costs.mean()
    else:
        answer = jax.nn.softmax(logits)
        present, entropy = [1], -(truth * jnp.log(answer)).sum(-1).mean()
    dice = [
        (2 * (truth[..., k] * answer[..., k]).sum() + 1)
        / (truth[..., k].sum() + answer[..., k].sum() + 1)
        for k in present
    ]
    loss, _ = segmentation.loss((logits,), {"label": jnp.asarray(label)}, members)
    np.testing.assert_allclose(loss[0], 1 - np.mean(dice) + entropy, rtol=1e-4)


def test_regions_overlap():
    """Each has a sigmoid of its own; a voxel of the core is one of the whole tumour too."""
    label = random_labels()
    members = belongs(BRATS)
    truth = members.T[label]
    right = 20.0 * (truth - 0.5)
    loss, metrics = segmentation.loss((jnp.asarray(right),), {"label": jnp.asarray(label)}, members)
    np.testing.assert_allclose(loss, 0, atol=1e-3)
    np.testing.assert_allclose(metrics["dice"][0], 3, rtol=1e-6)
    own = [segmentation.own_class(BRATS, index) for index in range(3)]
    assert own == [2, 1, 3]


def test_deep_supervision_weighs_each_resolution_half_as_much():
    label = random_labels(3, (1, 6, 6))
    finest, coarser = jnp.zeros((1, 6, 6, 4)), logits_of(label[:, ::2, ::2], 4)
    both, _ = segmentation.loss((finest, coarser), {"label": jnp.asarray(label)}, belongs())
    one, _ = segmentation.loss((finest,), {"label": jnp.asarray(label)}, belongs())
    np.testing.assert_allclose(both, one / 1.5, atol=1e-3)


# Crops.


def test_crops_find_a_rare_class():
    label = np.zeros((40, 40, 40), np.uint8)
    label[30, 2, 39] = 2
    label[:10, :10, :10] = 1
    size, hits = (8, 8, 8), {1: 0, 2: 0}
    for seed in range(100):
        start = segmentation.place(np.random.default_rng(seed), label, size, 1.0, classes=3)
        assert (start >= 0).all()
        assert (start + 8 <= 40).all()
        crop = pipeline.cut(label, start, size)
        for k in hits:
            hits[k] += bool((crop == k).any())
    assert min(hits.values()) > 30
    assert sum(hits.values()) >= 100


def test_without_foreground_crops_come_from_anywhere_also_without_a_label():
    label = np.zeros((20, 20), np.uint8)
    rngs = [np.random.default_rng(seed) for seed in range(200)]
    starts = {tuple(segmentation.place(rng, label, (8, 8), 1.0, classes=3)) for rng in rngs}
    axis = np.asarray(sorted(starts))[:, 0]
    assert len(starts) > 80
    assert axis.min() == 0
    assert axis.max() == 12


@given(st.integers(0, 100), st.tuples(st.integers(3, 20), st.integers(3, 20)))
def test_image_and_label_are_cut_from_the_same_place(seed, shape):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    start = segmentation.place(rng, label, (8, 10), 0.5, classes=3)
    image = pipeline.cut(label[..., None].astype(np.float16), start, (8, 10))
    cut = pipeline.cut(label, start, (8, 10), outside=segmentation.OUTSIDE)
    inside = cut != segmentation.OUTSIDE
    np.testing.assert_array_equal(image[..., 0][inside], cut[inside])
    assert inside.sum() == min(shape[0], 8) * min(shape[1], 10)


def test_validation_looks_where_the_labels_are(tiny, volumes):
    task = tasks.build(tiny("segment3d", volumes.path, data__crop=(8, 8, 8)), LABELS)
    case = volumes.cases[0]
    label = np.zeros(case.shape, np.uint8)
    label[18:22, 3:5, 10:14] = 1
    example = pipeline.Example(store.load_image(volumes, case), case, label)
    record = pipeline.arrays(task.record(np.random.default_rng(0), example, False))
    assert (record["label"] == 1).sum() == label.sum()


# Training.


def test_a_threshold_is_learned(tiny, volumes, tmp_path):
    """The label of the shared data set is where the first channel exceeds 1."""
    config = tiny(
        "segment2d", volumes.path, steps=120, validate_every=120, checkpoint_every=120,
        log_every=120, validation__repeats=4, optimizer__learning_rate=0.02, data__crop=(16, 16),
    )  # fmt: skip
    assert loop.train(config, tmp_path)
    lines = [line for line in run_log.read_metrics(tmp_path) if line["split"] == "val"]
    assert lines[0]["dice"] < 0.4 < 0.6 < lines[-1]["dice"]
    assert lines[-1]["dice_low"] <= lines[-1]["dice"] <= lines[-1]["dice_high"]
    assert lines[0]["reference_soft_dice"] < lines[-1]["reference_soft_dice"] <= 1


@pytest.mark.slow
def test_regions_deep_supervision_and_accumulation_train_together(tiny, volumes, tmp_path):
    config = tiny(
        "segment2d", volumes.path, task__regions=((1,),), task__deep=1, encoder__depth=3,
        optimizer__accumulate=2, optimizer__ema=0.5, transfer__mode="frozen",
    )  # fmt: skip
    assert loop.train(config, tmp_path)
    lines = run_log.read_metrics(tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["loss"] != lines[0]["loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task__regions": ((1, 2), (1,))}, "config.task.regions.*outside 1 to 1"),
        ({"task__regions": ((1,), (1,))}, "config.task.regions"),
        ({"task__regions": (1, 2, 3)}, "config.task.regions"),
        ({"task__deep": 1}, "config.task.deep=1"),
        ({"encoder__kind": "densenet121"}, "config.encoder.kind='densenet121'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        tasks.build(tiny("segment3d", **overrides), LABELS)


def test_a_data_set_without_classes_is_refused(tiny):
    with pytest.raises(UserError, match="no classes"):
        tasks.build(tiny("segment3d"), tasks.Labels(("background",)))


def test_voxels_that_nobody_annotated_attract_no_crop():
    label = np.zeros((12, 12), np.uint8)
    label[2:4, 2:4] = 1
    label[8:] = pipeline.OUTSIDE
    np.testing.assert_array_equal(segmentation.middle_of_labels(label), (2, 2))
    label[:8] = 0
    np.testing.assert_array_equal(segmentation.middle_of_labels(label), (6, 6))
