import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d import losses


def draw(seed, shape=(4, 3, 5)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, shape).astype(np.float32)
    labels = rng.integers(0, shape[-1], shape[:-1])
    candidates = rng.random(shape) < 0.5
    np.put_along_axis(candidates, labels[..., None], True, axis=-1)
    return logits, labels, candidates


@given(st.integers(0, 99), st.booleans())
def test_cross_entropy_is_minus_the_log_of_the_labels_share(seed, masked):
    logits, labels, candidates = draw(seed)
    if not masked:
        candidates = np.ones_like(candidates)
    weights = np.exp(logits.astype(float)) * candidates
    share = np.take_along_axis(weights / weights.sum(-1, keepdims=True), labels[..., None], -1)
    loss = losses.cross_entropy(
        *jax.tree.map(jnp.asarray, (logits, labels, candidates if masked else None))
    )
    np.testing.assert_allclose(loss, -np.log(share[..., 0]), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 99))
def test_ranked_first_means_above_every_other_candidate(seed):
    logits, labels, candidates = draw(seed)
    logits = logits.round()  # with ties
    own = np.take_along_axis(logits, labels[..., None], -1)
    for mask in (candidates, None):
        rivals = np.ones_like(candidates) if mask is None else mask.copy()
        np.put_along_axis(rivals, labels[..., None], False, axis=-1)
        expected = ((logits < own) | ~rivals).all(-1)
        found = losses.ranked_first(*jax.tree.map(jnp.asarray, (logits, labels, mask)))
        np.testing.assert_array_equal(found, expected)


def test_ties_are_lost():
    assert losses.ranked_first(jnp.zeros(5), jnp.array(0)) == 0
    assert losses.ranked_first(jnp.array([1.0, 1.0, 0.0]), jnp.array(0)) == 0
    assert losses.ranked_first(jnp.array([1.0, 0.9, 0.0]), jnp.array(0)) == 1


def test_half_precision_logits_are_summed_in_full():
    logits = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    loss = losses.cross_entropy(logits, jnp.array([7]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(4096), rtol=1e-6)


def test_gradients_are_finite_where_classes_are_left_out():
    candidates = jnp.array([True, False, True])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, jnp.array(0), candidates))(jnp.zeros(3))
    np.testing.assert_allclose(gradient, [-0.5, 0.0, 0.5], atol=1e-6)


def test_sums_and_counts_are_of_each_example():
    total, count = losses.per_example(jnp.arange(12.0).reshape(2, 3, 2))
    np.testing.assert_array_equal(total, [15, 51])
    np.testing.assert_array_equal(count, [6, 6])


def test_classified_gives_a_mean_loss_and_counts():
    logits, labels = map(jnp.asarray, draw(3, (2, 4, 5))[:2])
    loss, metrics = losses.classified(logits, labels)
    np.testing.assert_allclose(loss, losses.cross_entropy(logits, labels).mean(axis=1), rtol=1e-6)
    hits = (logits.argmax(-1) == labels).sum(axis=1)
    np.testing.assert_array_equal(metrics["accuracy"][0], hits)
    np.testing.assert_array_equal(metrics["accuracy"][1], [4, 4])
    assert metrics["chance"][0].sum() / metrics["chance"][1].sum() == pytest.approx(1 / 5)
