import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
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


def example(rank, side=9, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (side,) * (rank - 1) + (side + 2,))
    picture = rng.normal(size=(*label.shape, channels))
    return jnp.asarray(picture, jnp.float32), jnp.asarray(label, jnp.uint8)


def amounts(**chosen):
    nothing = {"rotate_degrees": 0.0, "zoom": 0.0, "probability": 0.0, "outside": 255}
    return {"flip": 0.0, "flip_axes": (0, 1)} | nothing | chosen


spatial = jax.jit(augment.spatial, static_argnames=amounts())
affine = jax.jit(augment.affine, static_argnames="outside")
EVERYTHING = amounts(flip=0.5, rotate_degrees=30.0, zoom=0.2, probability=0.7)


def test_noise_is_white_with_a_deviation_of_its_own_for_each_channel():
    x = image(3, side=12)
    noise = per_key(lambda key: augment.gaussian_noise(key, x, 0.5) - x, 60).reshape(60, -1, 2)
    sigma = noise.std(1)
    assert 0 < sigma.min() < 0.1
    assert 0.4 < sigma.max() < 0.53
    assert abs(np.corrcoef(sigma.T)[0, 1]) < 0.5
    assert (np.abs(noise.mean(1)) < 5 * sigma / np.sqrt(noise.shape[1])).all()
    neighbours = [np.corrcoef(n[:-1, 0], n[1:, 0])[0, 1] for n in noise]
    assert np.abs(neighbours).max() < 0.15
    np.testing.assert_array_equal(augment.gaussian_noise(jax.random.key(0), x, 0.0), x)


@settings(max_examples=10)
@given(seeds, st.sampled_from([2, 3]), st.sampled_from([0.0, 1.0]))
def test_nothing_moves_when_all_amounts_are_zero(seed, rank, probability):
    x, label = example(rank, seed=seed % 1000)
    moved = spatial(jax.random.key(seed), x, label, **amounts(probability=probability))
    np.testing.assert_array_equal(moved[0], x)
    np.testing.assert_array_equal(moved[1], label)
    assert (moved[0].dtype, moved[1].dtype) == (x.dtype, label.dtype)


@pytest.mark.parametrize(("rank", "flipped"), [(2, (0, 1)), (2, (1,)), (3, (0, 1, 2)), (3, (0, 2))])
def test_spatial_flips_are_exact_and_hit_each_of_their_axes_on_its_own(rank, flipped):
    x, label = example(rank, side=4)
    keys = jax.random.split(jax.random.key(0), 60)
    chosen = amounts(flip=0.5, flip_axes=flipped)
    moved = jax.vmap(lambda key: spatial(key, x, label, **chosen))(keys)
    pairs = {
        tuple(np.asarray(np.flip(a, axes)).tobytes() for a in (x, label))
        for count in range(len(flipped) + 1)
        for axes in itertools.combinations(flipped, count)
    }
    found = zip(*map(np.asarray, moved), strict=True)
    assert {(a.tobytes(), b.tobytes()) for a, b in found} == pairs


@pytest.mark.parametrize("rank", [2, 3])
def test_an_affine_map_is_scipys(rank):
    """A border of zeros, so that what the two take for outside does not matter to the labels."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        x, label = example(rank, seed=int(rng.integers(99)))
        angles = rng.uniform(-np.pi, np.pi, rank * (rank - 1) // 2)
        matrix = np.asarray(augment.rotation_matrix(jnp.asarray(angles), rank)) / rng.uniform(
            0.8, 1.2
        )
        centre = (np.array(label.shape) - 1) / 2
        offset = centre - matrix @ centre
        moved, moved_label = affine(x, label, jnp.asarray(matrix), outside=0)
        for channel in range(2):
            expected = scipy.ndimage.affine_transform(
                x[..., channel], matrix, offset, order=1, mode="nearest"
            )
            np.testing.assert_allclose(moved[..., channel], expected, atol=1e-4)
        expected = scipy.ndimage.affine_transform(
            label, matrix, offset, order=0, mode="grid-constant", cval=0
        )
        assert (np.asarray(moved_label) == expected).mean() > 0.999  # ties are rounded either way


@pytest.mark.parametrize("rank", [2, 3])
def test_right_angles_are_those_of_rot90(rank):
    x = image(rank, side=7)
    label = jnp.asarray(np.random.default_rng(1).integers(0, 4, (7,) * rank))
    planes = list(itertools.combinations(range(rank), 2))
    for number, plane in enumerate(planes):
        for quarters in range(4):
            angles = [quarters * np.pi / 2 * (number == other) for other in range(len(planes))]
            matrix = augment.rotation_matrix(jnp.asarray(angles), rank)
            moved, moved_label = affine(x, label, matrix, outside=255)
            np.testing.assert_allclose(moved, np.rot90(x, quarters, plane), atol=1e-5)
            np.testing.assert_array_equal(moved_label, np.rot90(label, quarters, plane))


@settings(max_examples=20)
@given(seeds, st.sampled_from([2, 3]))
def test_labels_are_never_blended_and_no_value_is_invented(seed, rank):
    x, label = example(rank, seed=seed % 1000)
    label = jnp.where(label == 1, 200, label).astype(jnp.uint8)
    moved, moved_label = spatial(jax.random.key(seed), x, label, **EVERYTHING)
    assert set(np.unique(moved_label)) <= {0, 2, 3, 200, 255}
    assert moved.min() >= x.min() - 1e-5
    assert moved.max() <= x.max() + 1e-5


@pytest.mark.parametrize("rank", [2, 3])
def test_image_and_label_move_together(rank):
    """The label of a ramp above 0 is, where it is known, that of the moved ramp above 0."""
    side = 17
    slope = np.array([0.6, -0.64, 0.48])[:rank]
    centred = np.stack(np.meshgrid(*[np.arange(side) - 8.0] * rank, indexing="ij"), axis=-1)
    ramp = jnp.asarray(centred @ slope, jnp.float32)[..., None]
    label = (ramp[..., 0] > 0).astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 40)
    move = jax.vmap(lambda key: spatial(key, ramp, label, **EVERYTHING))
    moved, moved_label = map(np.asarray, move(keys))
    known = moved_label != 255
    assert 0.8 < known.mean() < 1
    # The nearest voxel is at most half the diagonal of a voxel away.
    sure = known & (np.abs(moved[..., 0]) > np.linalg.norm(slope) * np.sqrt(rank) / 2)
    assert sure.mean() > 0.6
    np.testing.assert_array_equal(moved_label[sure], (moved[..., 0] > 0)[sure])
    assert len({y.tobytes() for y in moved}) > 20


@pytest.mark.parametrize("rank", [2, 3])
def test_the_drawn_map_is_a_rotation_and_a_zoom_within_their_limits(rank):
    """Coordinates as the image: the map can be read off around the centre."""
    side = 9
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(side) - 4.0] * rank, indexing="ij"), axis=-1)
    chosen = amounts(rotate_degrees=20.0, zoom=0.2, probability=0.75)
    label = jnp.zeros((side,) * rank, jnp.uint8)
    moved = per_key(lambda key: augment.spatial(key, places, label, **chosen)[0])
    centre = (slice(None), *(4,) * rank)
    np.testing.assert_allclose(moved[centre], 0, atol=1e-5)
    neighbours = np.eye(rank, dtype=int) + 4
    matrices = np.stack([moved[(slice(None), *place)] for place in neighbours], axis=-1)
    factors = np.abs(np.linalg.det(matrices)) ** (-1 / rank)
    still = np.isclose(matrices, np.eye(rank)).all((1, 2))
    assert 0.15 < still.mean() < 0.35
    assert 0.8 - 1e-4 < factors.min() < 0.84
    assert 1.16 < factors.max() < 1.2 + 1e-4
    turns = matrices * factors[:, None, None]
    unit = np.broadcast_to(np.eye(rank), turns.shape)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), unit, atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-4)
    if rank == 2:
        degrees = np.degrees(np.arctan2(turns[:, 0, 1], turns[:, 0, 0]))
        assert -20.01 < degrees.min() < -17
        assert 17 < degrees.max() < 20.01


@pytest.mark.parametrize("rank", [2, 3])
def test_what_comes_from_beyond_the_image_repeats_the_border_and_has_no_label(rank):
    x = jnp.broadcast_to(jnp.arange(9.0).reshape(9, *(1,) * rank), (9,) * rank + (1,))
    label = jnp.ones((9,) * rank, jnp.uint8)
    moved, moved_label = affine(x, label, 2.0 * jnp.eye(rank), outside=255)
    line = moved[(slice(None), *(4,) * (rank - 1), 0)]
    np.testing.assert_array_equal(line, [0, 0, 0, 2, 4, 6, 8, 8, 8])
    known = np.zeros((9,) * rank, bool)
    known[(slice(2, 7),) * rank] = True
    np.testing.assert_array_equal(moved_label, np.where(known, 1, 255))


@pytest.mark.parametrize("rank", [2, 3])
def test_the_same_key_moves_an_example_alike_alone_and_in_a_batch(rank):
    keys = jax.random.split(jax.random.key(0), 4)
    examples = [example(rank, seed=seed) for seed in range(4)]
    images, labels = map(jnp.stack, zip(*examples, strict=True))

    def change(key, x, label):
        return spatial(key, x, label, **EVERYTHING)

    together = jax.vmap(change)(keys, images, labels)
    for index, (key, (x, label)) in enumerate(zip(keys, examples, strict=True)):
        alone = change(key, x, label)
        np.testing.assert_allclose(together[0][index], alone[0], atol=1e-5)
        np.testing.assert_array_equal(together[1][index], alone[1])
        np.testing.assert_array_equal(change(key, x, label)[0], alone[0])


@pytest.mark.parametrize("variance", [0.0, 0.2, 0.5, 0.7, 2.25])
def test_blur_has_the_variance_it_is_asked_for_and_needs_no_border(variance):
    impulse = np.zeros((41, 3, 1), np.float32)
    impulse[20] = 1
    response = np.asarray(augment.blur(jnp.asarray(impulse), (variance, 0.0)))
    reach = augment.blur_reach(variance)
    assert response.shape == (41 - 2 * reach, 3, 1)
    profile, places = response[:, 1, 0], np.arange(reach, 41 - reach) - 20
    assert profile.min() >= 0
    assert profile.sum() == pytest.approx(1, abs=1e-5)
    assert (profile * places**2).sum() == pytest.approx(variance, abs=1e-4)
