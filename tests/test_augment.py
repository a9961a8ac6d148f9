import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d import augment
from ssl3d.errors import UserError

seeds = st.integers(0, 2**32 - 1)


def image(rank, side=6, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(side,) * rank + (channels,)), jnp.float32)


def per_key(function, count=200):
    """The function of a key, for many keys at once."""
    return np.asarray(jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize("rank", [2, 3])
def test_scale_and_shift_is_one_line_for_each_channel(rank):
    x = image(rank)
    changed = per_key(lambda key: augment.scale_and_shift(key, x, 0.2), 50)
    lines = []
    for y in changed:
        for channel in range(2):
            gain, shift = np.polyfit(x[..., channel].ravel(), y[..., channel].ravel(), 1)
            np.testing.assert_allclose(y[..., channel], x[..., channel] * gain + shift, atol=1e-4)
            lines.append((gain, shift))
    gains, shifts = np.array(lines).T
    assert 0.8 <= gains.min() < 0.85
    assert 1.15 < gains.max() <= 1.2
    assert -0.2 <= shifts.min() < -0.15
    assert 0.15 < shifts.max() <= 0.2
    assert abs(np.corrcoef(gains[::2], gains[1::2])[0, 1]) < 0.5  # channels on their own


@pytest.mark.parametrize("rank", [2, 3])
def test_monotone_keeps_the_order_of_voxels_and_changes_the_histogram(rank):
    x = image(rank, side=5)
    changed = per_key(lambda key: augment.monotone(key, x, 0.9), 60)
    for y in changed:
        for channel in range(2):
            order = np.argsort(x[..., channel], axis=None)
            steps = np.diff(y[..., channel].ravel()[order])
            assert steps.min() >= -1e-4 * np.ptp(y[..., channel])
    spread = changed.reshape(60, -1, 2)
    middle = (np.median(spread, axis=1) - spread.min(1)) / np.ptp(spread, axis=1)
    assert np.ptp(middle) > 0.5  # the median wanders over the range


@settings(max_examples=20)
@given(seeds)
def test_monotone_of_strength_zero_changes_nothing(seed):
    x = image(2, seed=seed % 1000)
    np.testing.assert_allclose(augment.monotone(jax.random.key(seed), x, 0.0), x, atol=1e-5)


def test_a_constant_image_stays_finite():
    changed = per_key(lambda key: augment.monotone(key, jnp.full((4, 4, 1), 3.0), 0.9), 20)
    assert np.isfinite(changed).all()
    assert np.ptp(changed, axis=(1, 2, 3)).max() < 1e-4


@pytest.mark.parametrize("rank", [2, 3])
def test_flips_mirror_each_axis_on_its_own(rank):
    x = image(rank, side=3, channels=1)
    flipped = per_key(lambda key: augment.flips(key, x))
    every = {
        np.asarray(np.flip(x, [axis for axis in range(rank) if bits >> axis & 1])).tobytes()
        for bits in range(2**rank)
    }
    assert len(every) == 2**rank
    assert {y.tobytes() for y in flipped} == every


def test_flips_happen_as_often_as_asked():
    x = jnp.arange(2.0).reshape(2, 1, 1)
    assert not per_key(lambda key: augment.flips(key, x, 0.0))[:, 0].any()
    assert per_key(lambda key: augment.flips(key, x, 1.0))[:, 0].all()
    assert 0.1 < per_key(lambda key: augment.flips(key, x, 0.2))[:, 0].mean() < 0.3


@pytest.mark.parametrize("rank", [2, 3])
def test_zoom_scales_about_the_centre(rank):
    """A ramp stays a ramp of another slope: inside, where no border is repeated."""
    side = 21
    ramp = jnp.broadcast_to(
        (jnp.arange(side) - 10.0).reshape(side, *(1,) * rank), (side,) * rank + (1,)
    )
    zoomed = per_key(lambda key: augment.zoom(key, ramp, 1.0, 0.2), 40)
    assert zoomed.shape == (40, *ramp.shape)
    lines = zoomed.reshape(40, side, -1)
    np.testing.assert_allclose(lines, lines[..., :1].repeat(lines.shape[-1], -1), atol=1e-4)
    np.testing.assert_allclose(lines[:, 10], 0, atol=1e-4)
    slopes = lines[:, 14, 0] - lines[:, 13, 0]
    np.testing.assert_allclose(lines[:, 6, 0] - lines[:, 5, 0], slopes, atol=1e-4)
    assert 1 / 1.2 - 1e-3 < slopes.min() < 0.9
    assert 1.1 < slopes.max() < 1 / 0.8 + 1e-3


@pytest.mark.parametrize("rank", [2, 3])
def test_zoom_scales_each_axis_by_a_factor_of_its_own_and_invents_no_value(rank):
    x = image(rank, side=9)
    zoomed = per_key(lambda key: augment.zoom(key, x, 1.0, 0.2), 10)
    assert zoomed.min() >= x.min() - 1e-5
    assert zoomed.max() <= x.max() + 1e-5
    position = jnp.stack(jnp.meshgrid(*[jnp.arange(9.0)] * rank, indexing="ij"), axis=-1)
    moved = per_key(lambda key: augment.zoom(key, position, 1.0, 0.2), 10)
    slopes = [np.take(np.take(moved[..., a], 5, 1 + a) - np.take(moved[..., a], 4, 1 + a), 0, 1)
              for a in range(rank)]  # fmt: skip
    first = [slope.reshape(10, -1)[:, 0] for slope in slopes]
    assert not np.allclose(first[0], first[1], atol=1e-3)


def test_zoom_leaves_most_images_alone_and_never_changes_a_constant():
    x = image(2, side=8)
    zoomed = per_key(lambda key: augment.zoom(key, x, 0.2, 0.2))
    kept = np.isclose(zoomed, x, atol=1e-5).all(axis=(1, 2, 3))
    assert 0.7 < kept.mean() < 0.9
    constant = per_key(lambda key: augment.zoom(key, jnp.ones((8, 8, 1)), 1.0, 0.2), 20)
    np.testing.assert_allclose(constant, 1, rtol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_coarsening_takes_means_over_blocks(rank):
    x = image(rank, side=6)
    coarse = augment.coarsen(x, 3)
    assert coarse.shape == (2,) * rank + (2,)
    corner = x[(slice(0, 3),) * (rank - 1) + (slice(3, 6),)]
    np.testing.assert_allclose(
        coarse[(0,) * (rank - 1) + (1,)], corner.mean(axis=tuple(range(rank))), rtol=1e-5
    )
    np.testing.assert_array_equal(augment.coarsen(x, 1), x)


@pytest.mark.parametrize("factor", [0, -1, 4])
def test_a_factor_that_does_not_divide_the_crop_is_refused(factor):
    with pytest.raises(UserError, match=r"config\.task\.coarsen=.*config\.data\.crop=\(6, 6\)"):
        augment.check_coarsening(factor, (6, 6))


def test_what_becomes_of_an_example_does_not_depend_on_its_neighbours():
    keys = jax.random.split(jax.random.key(0), 4)
    batch = jnp.stack([image(2, seed=seed) for seed in range(4)])

    def change(key, x):
        return augment.zoom(key, augment.monotone(key, augment.flips(key, x), 0.9), 0.5, 0.2)

    together = jax.jit(jax.vmap(change))(keys, batch)
    alone = jax.jit(change)(keys[2], batch[2])
    np.testing.assert_allclose(together[2], alone, rtol=1e-5, atol=1e-5)
