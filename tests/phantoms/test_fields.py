import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssl3d.phantoms import fields

SHAPES = {2: (21, 17), 3: (9, 12, 15)}
ranks = pytest.mark.parametrize("rank", [2, 3])


def grid(rank):
    return fields.coordinates(SHAPES[rank], [1.5] * rank)


@ranks
def test_coordinates_are_mm_from_the_centre(rank):
    points = grid(rank)
    assert points.shape == (rank, *SHAPES[rank])
    np.testing.assert_allclose(points.reshape(rank, -1).mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.diff(points[-1], axis=-1), 1.5)


@pytest.mark.parametrize("scale", [1.0, 5.0, 40.0])
def test_smooth_noise_has_the_same_statistics_everywhere(scale):
    rng = np.random.default_rng(0)
    draws = np.stack([fields.smooth_noise(rng, (40, 8), scale) for _ in range(2000)])
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.12)
    np.testing.assert_allclose(draws.std(axis=0), 1, atol=0.1)
    if scale == 5:
        correlation = np.mean(draws[:, 10, 4] * draws[:, 15, 4])
        assert correlation == pytest.approx(0.5, abs=0.08)


@ranks
def test_pose_with_no_bounds_is_the_identity(rank):
    points = grid(rank)
    moved = fields.pose(np.random.default_rng(0), points, degrees=0, scaling=0, shift=0)
    np.testing.assert_allclose(moved, points, atol=1e-5)


@ranks
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_pose_stays_within_its_bounds(rank, seed):
    """The corners of a cube around the origin move by no more than all bounds together allow."""
    corners = np.stack(np.meshgrid(*[[-50.0, 50.0]] * rank, indexing="ij"))
    radius = 50 * rank**0.5
    moved = fields.pose(np.random.default_rng(seed), corners, degrees=5, scaling=0.05, shift=4)
    limit = radius * (np.deg2rad(5) * 3**0.5 + 0.05) + 4 * rank**0.5 * 1.05
    assert np.linalg.norm(moved - corners, axis=0).max() <= limit


@ranks
@given(turn=st.floats(-180, 180))
def test_a_sphere_has_the_exact_distance_however_it_is_turned(rank, turn):
    points = grid(rank)
    rotation = fields.rotation_matrix(*([turn] if rank == 2 else [turn, 10, -20]))
    distance = fields.ellipsoid(points, [1] * rank, [4] * rank, rotation)
    np.testing.assert_allclose(distance, np.linalg.norm(points - 1, axis=0) - 4, atol=1e-3)


def test_an_ellipsoid_is_turned_from_its_own_axes_to_those_of_the_points():
    ahead, aside = np.array([[0.0], [5.0]]), np.array([[5.0], [0.0]])
    quarter = fields.rotation_matrix(90)
    assert fields.ellipsoid(ahead, (0, 0), (9, 2), quarter) < 0
    assert fields.ellipsoid(aside, (0, 0), (9, 2), quarter) > 0


@ranks
def test_a_tube_is_a_capsule_that_tapers(rank):
    def distance(*point):
        path = np.eye(2, rank) * [[0], [10]]  # from the origin, 10 mm along the second axis
        return fields.tube(np.array(point[:rank])[:, None], path, [2, 1]).item()

    assert distance(0, 13, 0) == pytest.approx(3 - 1)
    assert distance(0, -5, 0) == pytest.approx(5 - 2)
    assert distance(4, 5, 0) == pytest.approx(4 - 1.5)


@given(arrays(np.float32, 20, elements=st.floats(-50, 50, width=32)))
def test_blend_contains_both_and_touches_neither_far_from_the_crease(first):
    second = np.linspace(-20, 20, 20, dtype=np.float32)
    blended = fields.blend(first, second, 3)
    union = np.minimum(first, second)
    assert (blended <= union).all()
    far = np.abs(first - second) > 3
    np.testing.assert_array_equal(blended[far], union[far])


def test_partial_volume_is_a_half_on_the_surface():
    np.testing.assert_allclose(
        fields.soft(np.array([-9, -0.5, 0, 0.5, 9]), 2), [1, 0.75, 0.5, 0.25, 0]
    )


@ranks
def test_paint_replaces_as_much_as_the_share_says(rank):
    shape = SHAPES[rank]
    image = np.ones((3, *shape), np.float32)
    share = np.zeros(shape, np.float32)
    share[0], share[1] = 1, 0.25
    fields.paint(image, share, [5, 1, 0])
    np.testing.assert_allclose(image[:, 0].reshape(3, -1).T, np.tile([5, 1, 0], (share[0].size, 1)))
    np.testing.assert_allclose(image[0, 1], 2)
    assert (image[:, 2:] == 1).all()
    fields.paint(image, share, np.full((3, *shape), 7))
    assert (image[:, 0] == 7).all()
    fields.paint(image, share, 3)
    assert (image[:, 0] == 3).all()


def test_bias_is_positive_and_around_one():
    bias = np.stack(
        [fields.bias_field(np.random.default_rng(s), (12, 10, 8), 0.2) for s in range(200)]
    )
    assert bias.min() > 0
    assert np.log(bias).std() == pytest.approx(0.2, rel=0.1)
    assert np.log(bias).mean() == pytest.approx(0, abs=0.03)


def test_noise_in_air_is_rayleigh():
    noisy = fields.rician(np.random.default_rng(0), np.zeros((1, 60, 60), np.float32), 0.1)
    assert noisy.min() >= 0
    assert noisy.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.03)
