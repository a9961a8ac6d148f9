import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import augment, tasks
from ssl3d.errors import UserError
from ssl3d.tasks import exemplar, retrieval
from tests.support.random_weights import random_variables

MARGIN = 1.0
margin_loss = jax.jit(exemplar.margin_loss, static_argnums=2)
original_loss = jax.jit(exemplar.original_loss, static_argnums=2)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(batch, size=6, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(batch, 2, size))).astype(np.float32)


def everyone(batch):
    return {"subject": jnp.arange(batch), "valid": jnp.ones(batch, bool)}


def guarded_distance(a, b):
    return np.sqrt(((a - b) ** 2).sum() + 1e-6)


def margin_loss_by_hand(x, subject, valid, margin):
    losses, hits, chances = [], [], []
    for i, (original, transformed) in enumerate(x.astype(float)):
        own = guarded_distance(transformed, original)
        others = [
            guarded_distance(transformed, x[j, 0])
            for j in range(len(x))
            if subject[j] != subject[i] and valid[j]
        ]
        losses.append(np.mean([max(0, own - other + margin) for other in others]))
        hits.append(all(own < other for other in others))
        chances.append(1 / (1 + len(others)))
    return losses, hits, chances


def test_the_loss_is_what_its_definition_says():
    x = embeddings(6)
    x[:3, 1] = unit(x[:3, 0] + 0.1 * x[:3, 1])  # some are close to their originals
    targets = {"subject": np.array([4, 2, 4, 9, 5, 5]), "valid": np.arange(6) != 5}
    loss, metrics = margin_loss(x, targets, MARGIN)
    losses, hits, chances = margin_loss_by_hand(x, **targets, margin=MARGIN)
    np.testing.assert_allclose(loss, losses, rtol=1e-4)
    np.testing.assert_array_equal(metrics["accuracy"][0], hits)
    np.testing.assert_allclose(metrics["chance"][0], chances, rtol=1e-6)
    assert 0 < sum(hits) < 6


@pytest.mark.parametrize("moved", [2, 5], ids=["same subject", "padding"])
def test_the_same_subject_and_padding_are_no_negatives(moved):
    targets = {"subject": np.array([4, 2, 4, 9, 5, 7]), "valid": np.arange(6) != 5}
    x = embeddings(6)
    before, _ = margin_loss(x, targets, 4.0)  # so that every pair counts
    y = x.copy()  # as the array that jax was given may still be in use
    y[moved] = unit(x[moved] + 1)
    after, _ = margin_loss(y, targets, 4.0)
    same = np.isclose(before, after, rtol=1e-6)
    expected = {2: [True, False, False, False, False, False], 5: [True] * 5 + [False]}
    assert same.tolist() == expected[moved]


def test_a_constant_encoder_stays_at_the_margin():
    x = np.broadcast_to(unit(np.ones(6, np.float32)), (8, 2, 6))
    loss, metrics = margin_loss(x, everyone(8), MARGIN)
    np.testing.assert_allclose(loss, MARGIN, rtol=1e-6)
    assert metrics["accuracy"][0].sum() == 0


def test_random_embeddings_do_not_beat_a_constant_by_much():
    loss, _ = margin_loss(embeddings(64, size=128), everyone(64), MARGIN)
    assert abs(loss.mean() - MARGIN) < 0.05


def test_a_perfect_encoder_reaches_zero():
    x = np.repeat(np.eye(8, dtype=np.float32)[:, None], 2, axis=1)
    loss, metrics = margin_loss(x, everyone(8), MARGIN)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(metrics["accuracy"][0], 1)


def test_gradients_at_identical_and_at_zero_features_are_finite(tiny):
    task = tasks.build(tiny("exemplar2d"))
    blank = jnp.zeros((3, 2, 8, 8, 1))
    variables = random_variables(task.network, blank)

    def loss(params, crops):
        return task.loss(task.network.apply({"params": params}, crops), everyone(3))[0].mean()

    gradient = jax.jit(jax.grad(loss))
    for crops in (blank, jnp.ones_like(blank)):
        leaves = jax.tree.leaves(gradient(variables["params"], crops))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_one_head_of_unit_length_serves_both(tiny):
    task = tasks.build(tiny("exemplar2d"))
    crops = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 8, 8, 1)), jnp.float32)
    variables = random_variables(task.network, crops)
    apply = jax.jit(task.network.apply)
    x = apply(variables, crops)
    assert x.shape == (2, 2, 8)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-4)
    np.testing.assert_allclose(apply(variables, crops[:, ::-1]), x[:, ::-1], atol=1e-5)
    heads = [name for name in variables["params"] if name.startswith("heads")]
    assert len(heads) == 1


def test_the_original_codes_loss_is_won_by_constants(tiny):
    """Its documented fault: three heads with sigmoids, and a margin that no distance exceeds."""
    x = np.zeros((4, 3, 16), np.float32)
    x[:, 2] = 1.0  # the third head's bias alone
    loss, metrics = original_loss(x, everyone(4), MARGIN)
    np.testing.assert_array_equal(loss, 0)
    assert metrics["accuracy"][0].sum() == 0  # while nothing was learned
    loss, _ = original_loss(np.full((4, 3, 16), 0.5, np.float32), everyone(4), MARGIN)
    np.testing.assert_array_equal(loss, MARGIN)


def original_loss_by_hand(x, subject, valid, margin):
    losses = []
    for i, (positive, anchor, _) in enumerate(x.astype(float)):
        before = [(i - k) % len(x) for k in range(1, len(x))]
        allowed = [j for j in before if subject[j] != subject[i] and valid[j]]
        near = np.mean((anchor - positive) ** 2)
        far = [np.mean((anchor - x[j, 2]) ** 2) for j in allowed[:1]]
        losses.append(max(0, near - far[0] + margin) if far else 0)
    return losses


@pytest.mark.parametrize("valid", [[True] * 6, [True] * 4 + [False] * 2])
def test_the_original_codes_negative_is_another_subject_and_no_padding(valid):
    x = np.random.default_rng(0).uniform(size=(6, 3, 16)).astype(np.float32)
    for subject in ([4, 4, 4, 9, 5, 7], range(6), [1] * 6):
        targets = {"subject": np.array(subject), "valid": np.array(valid)}
        loss, _ = original_loss(x, targets, MARGIN)
        np.testing.assert_allclose(
            loss, original_loss_by_hand(x, **targets, margin=MARGIN), rtol=1e-5
        )


def test_the_histogram_orders_untouched_volumes_and_not_changed_ones(tiny):
    """Why intensities are changed: quantiles alone know a volume that was only turned."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(16, 10, 10, 1)) ** rng.integers(1, 4, (16, 1, 1, 1))
    volumes = (mixed - mixed.mean((1, 2, 3), keepdims=True)) / mixed.std((1, 2, 3), keepdims=True)
    volumes = jnp.asarray(volumes, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 16)

    def accuracy(intensity):
        task = tiny("exemplar2d", task__intensity=intensity, task__zoom=0.0).task
        crops, _ = jax.jit(jax.vmap(lambda key, x: exemplar.views(key, {"volume": x}, True, task)))(
            keys, volumes
        )
        data = jax.tree.map(np.asarray, retrieval.collect(crops, jnp.zeros((16, 2, 3)), {}))
        assert data["histogram"].shape == (16, 2, 33)
        score = retrieval.score(data, np.arange(16), np.zeros(16, int), pool=32)
        return score["accuracy_histogram"][0].mean()

    assert accuracy(0.0) == 1.0
    assert accuracy(0.9) < 0.6


@pytest.mark.parametrize("rank", [2, 3])
def test_views_are_the_original_and_a_transformed_version(tiny, rank):
    task = tiny(f"exemplar{rank}d", task__coarsen=1).task
    volume = np.random.default_rng(0).normal(size=(6,) * rank + (2,)).astype(np.float16)
    view = jax.jit(lambda key: exemplar.views(key, {"volume": jnp.asarray(volume)}, True, task)[0])
    crops = [view(jax.random.key(seed)) for seed in range(4)]
    for crop in crops:
        assert crop.shape == (2, *volume.shape)
        np.testing.assert_array_equal(crop[0], volume.astype(np.float32))
        assert np.isfinite(crop).all()
        assert not np.allclose(crop[0], crop[1], atol=1e-2)
    assert len({np.asarray(crop[1]).tobytes() for crop in crops}) == 4


def test_without_probabilities_nothing_is_transformed(tiny):
    config = tiny("exemplar3d")
    for key in ("flip", "turn", "zoom", "intensity"):
        config.task[key] = 0.0
    volume = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5, 5, 1)), jnp.float32)
    same = jax.jit(lambda key: exemplar.transform(key, volume, config.task))(jax.random.key(0))
    np.testing.assert_allclose(same, volume, atol=1e-5)


def test_sides_that_differ_are_flipped_and_never_turned(tiny):
    config = tiny("exemplar2d", task__zoom=0.0, task__intensity=0.0, task__turn=1.0)
    volume = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 1)), jnp.float32)
    choices = [np.flip(volume, axes) for axes in ((), 0, 1, (0, 1))]
    transform = jax.jit(lambda key: exemplar.transform(key, volume, config.task))
    for seed in range(6):
        moved = transform(jax.random.key(seed))
        assert any(np.allclose(moved, choice, atol=1e-4) for choice in choices)


def test_turns_are_those_of_the_whole_group(tiny):
    config = tiny("exemplar2d", task__zoom=0.0, task__intensity=0.0, task__turn=1.0)
    config.task.flip = 0.0
    volume = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 1)), jnp.float32)
    transform = jax.jit(lambda key: exemplar.transform(key, volume, config.task))
    turns = np.stack([augment.rotate(volume, i, "all") for i in range(4)])
    moved = np.stack([transform(key) for key in jax.random.split(jax.random.key(0), 40)])
    same = np.isclose(moved[:, None], turns, atol=1e-4).all(axis=(2, 3, 4))
    assert (same.sum(axis=1) == 1).all()
    assert same.any(axis=0).all()


@pytest.mark.parametrize(
    ("rank", "variant", "chance", "shift", "factor"),
    [
        (3, "paper", 0.5, 0.125, 0.5),
        (2, "paper", 0.5, 0.125, 0.5),
        (3, "original", 0.5, 0.125, 0.5),
        (2, "original", 1.0, 0.2, 0.2),
    ],
)
def test_the_published_variants_change_brightness_and_contrast_alone(
    tiny, rank, variant, chance, shift, factor
):
    config = tiny(f"exemplar{rank}d", argument=f"phantom,{variant}", task__zoom=0.0)
    config.task.flip = config.task.turn = 0.0
    volume = jnp.asarray(np.random.default_rng(0).normal(size=(6,) * rank + (2,)) ** 3, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 200)
    moved = jax.jit(jax.vmap(lambda key: exemplar.transform(key, volume, config.task)))(keys)
    x, y = np.asarray(volume, float).ravel(), np.asarray(moved, float).reshape(200, -1)
    gains = ((y - y.mean(1, keepdims=True)) @ (x - x.mean())) / np.square(x - x.mean()).sum()
    shifts = (y.mean(1) - x.mean()) / (x.max() - x.min())
    affine = gains[:, None] * (x - x.mean()) + y.mean(1, keepdims=True)
    np.testing.assert_allclose(y, affine, atol=1e-5 * np.abs(x).max())
    changed = np.abs(gains - 1) > 1e-4
    assert changed.mean() == pytest.approx(chance, abs=0.12)
    np.testing.assert_allclose(shifts[~changed], 0, atol=1e-5)
    for found, most in ((gains[changed] - 1, factor), (shifts[changed], shift)):
        assert 0.9 * most < np.abs(found).max() < 1.001 * most
        assert abs(found.mean()) < 0.2 * most


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"batch_size": 1}, "config.batch_size=1"),
        ({"task__objective": "nce"}, "config.task.objective"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("exemplar3d", **overrides))
