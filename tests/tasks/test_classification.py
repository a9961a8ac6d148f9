import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d import bounds, reference_scores, tasks
from ssl3d.configs import classify2d
from ssl3d.errors import UserError
from ssl3d.tasks import classification
from ssl3d.training import loop, run_log

LABELS = tasks.Labels(("none", "mild", "severe"), (4, 2, 2))


@given(st.integers(0, 1000), st.booleans())
def test_probabilities_are_a_distribution(seed, ordinal):
    logits = np.random.default_rng(seed).normal(0, 5, (4, 4)).astype(np.float32)
    probabilities = np.asarray(classification.probabilities(jnp.asarray(logits), ordinal))
    assert probabilities.shape == (4, 5 if ordinal else 4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities >= 0).all()


def test_an_ordinal_head_counts_the_grades_that_are_reached():
    logits = jnp.asarray([[9.0, 9, -9, -9], [-9, -9, -9, -9], [9, 9, 9, 9], [-9, 9, 9, 9]])
    probabilities = np.asarray(classification.probabilities(logits, ordinal=True))
    # The last one contradicts itself: grade 1 is not reached, so no higher one is.
    np.testing.assert_array_equal(classification.grade_of(probabilities, True), [2, 0, 4, 0])
    targets = {"grade": jnp.asarray([2, 0, 4, 0])}
    loss, metrics = classification.loss(logits, targets, np.ones(5), ordinal=True, chance=0.2)
    np.testing.assert_array_equal(metrics["accuracy"][0], 1)
    np.testing.assert_allclose(loss[:3], 0, atol=1e-3)


def test_the_score_of_figure_6_is_the_released_code_s():
    """Bits of ordinal outputs, as `reference_scores` counts them after a test."""
    random = np.random.default_rng(5)
    logits, grades = random.normal(0, 3, (40, 4)), random.integers(0, 5, 40)
    probabilities = np.asarray(classification.probabilities(jnp.asarray(logits), ordinal=True))
    reached = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    truth = (grades[:, None] >= np.arange(5)).astype(float)
    wanted = reference_scores.reference_ordinal_scores(truth, reached)["reference_bin_accuracy"]
    found = classification.bits_right(probabilities, grades)
    assert found.shape == (40,)
    assert found.mean() == pytest.approx(wanted)


def test_balanced_weights_give_every_class_the_same_say():
    weights = classification.class_weights((6, 3, 0, 1), "balanced")
    np.testing.assert_allclose(weights * (6, 3, 0, 1), np.asarray([1, 1, 0, 1]) * 10 / 3)
    np.testing.assert_array_equal(classification.class_weights((6, 3), "none"), 1)


def test_the_loss_is_weighted_by_class():
    logits, grade = jnp.zeros((2, 3)), jnp.asarray([0, 2])
    loss, _ = classification.loss(logits, {"grade": grade}, np.asarray([1, 1, 3.0]), False, 0.5)
    np.testing.assert_allclose(loss, np.log(3) * np.asarray([1, 3]), rtol=1e-6)


def test_chance_is_the_largest_class(tiny):
    task = tasks.build(tiny("classify2d"), LABELS)
    _, metrics = task.loss(jnp.zeros((2, 3)), {"grade": jnp.asarray([0, 2])})
    np.testing.assert_allclose(metrics["chance"][0], 0.5)


def test_a_run_with_an_ordinal_head_validates_and_keeps_its_models(tiny, pictures, tmp_path):
    """The same with a softmax: tests/training/test_trained_model.py."""
    config = tiny(
        "classify2d", pictures.path, steps=4, validate_every=2, checkpoint_every=4,
        task__head="ordinal",
    )  # fmt: skip
    assert loop.train(config, tmp_path)
    lines = [line for line in run_log.read_metrics(tmp_path) if line["split"] == "val"]
    assert {"accuracy", "kappa", "chance", "reference_bit_accuracy"} <= lines[-1].keys()
    assert (tmp_path / "model" / "last" / "model.safetensors").exists()
    assert (tmp_path / "model" / "best" / "model.json").exists()


def test_the_score_is_kappa_over_all_cases_at_once(tiny):
    task = tasks.build(tiny("classify2d"), LABELS)
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 3, 30)
    probability = rng.dirichlet(np.ones(3), 30)
    collected = {"probability": probability, "grade": grades}
    total, count = task.score(collected, np.arange(30), np.zeros(30, int))["kappa"]
    answers = probability.argmax(-1)
    # Cohen's kappa with squared weights, written out.
    table = np.zeros((3, 3))
    np.add.at(table, (grades, answers), 1)
    penalty = np.subtract.outer(np.arange(3), np.arange(3)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / 30
    expected = 1 - (penalty * table).sum() / (penalty * chance).sum()
    assert total.sum() / count.sum() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("argument", "head", "expected"),
    [
        ("folder", "softmax", "balanced_accuracy"),
        ("folder", "ordinal", "kappa"),
        ("phantom", "softmax", "kappa"),
        ("retina", "softmax", "kappa"),
    ],
)
def test_classes_without_an_order_are_not_selected_by_kappa(argument, head, expected):
    config = classify2d.get_config(argument)
    config.task.head = head
    bounds.derive(config)
    assert config.task.select_by == expected


@pytest.mark.parametrize("name", ["kappa", "balanced_accuracy", "auroc"])
def test_the_best_model_is_that_of_the_chosen_score(tiny, name):
    task = tasks.build(tiny("classify2d", task__select_by=name), LABELS)
    assert task.best_by == name
    assert task.shown == (name,)
    rng = np.random.default_rng(0)
    collected = {"probability": rng.dirichlet(np.ones(3), 30), "grade": rng.integers(0, 3, 30)}
    assert name in task.score(collected, np.arange(30), np.zeros(30, int))


def test_a_model_from_before_the_choice_is_that_of_kappa(tiny):
    config = tiny("classify2d")
    del config.task.select_by
    assert tasks.build(config, LABELS).best_by == "kappa"


def test_augmentation_leaves_validation_alone(tiny, pictures):
    task = tasks.build(tiny("classify2d", pictures.path), LABELS)
    image = np.random.default_rng(0).normal(size=(24, 24, 3)).astype(np.float16)
    record = {"volume": jnp.asarray(image), "grade": jnp.asarray(1)}
    shown, targets = task.views(jax.random.key(0), record, False)
    np.testing.assert_array_equal(shown, image.astype(np.float32))
    moved, _ = task.views(jax.random.key(0), record, True)
    assert not np.array_equal(moved, shown)
    assert int(targets["grade"]) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task__head": "both"}, "config.task.head='both'"),
        ({"task__class_weights": "some"}, "config.task.class_weights='some'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        tasks.build(tiny("classify2d", **overrides), LABELS)


def test_a_data_set_without_grades_is_refused(tiny, volumes):
    with pytest.raises(UserError, match="no grades"):
        tasks.build(tiny("classify2d"), tasks.Labels(("background", "bright"), ()))
