import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from ssl3d.phantoms import fundus
from ssl3d.phantoms.eye import Eye, Strokes, coverage
from ssl3d.phantoms.retinopathy import Proliferation

SHAPE = (96, 96)


def photograph(seed, grade=0, shape=SHAPE):
    return fundus.photograph(np.random.default_rng(seed), shape, grade)


@pytest.fixture(scope="module")
def healthy():
    return np.stack([photograph(seed) for seed in range(20)])


def disc_position(image):
    """Row and column of the spot that outshines its neighbourhood most, by looking at the image."""
    light = image[..., 1:].sum(axis=-1)
    field = (light > 0.05).astype(float)
    around = gaussian_filter(light, 12) / (gaussian_filter(field, 12) + 0.05)
    contrast = (gaussian_filter(light, 3) - around) * (gaussian_filter(field, 5) > 0.9)
    return np.unravel_index(np.argmax(contrast), contrast.shape)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(16, 120), st.integers(16, 120)),
    grade=st.integers(0, 4),
)
def test_every_shape_and_grade_gives_a_valid_photograph(seed, shape, grade):
    image = photograph(seed, grade, shape)
    assert image.shape == (*shape, 3)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1
    # A round field on black: dark in the corners, and nothing but retina in its middle.
    corners = [image[row, column] for row in (0, -1) for column in (0, -1)]
    assert np.max(corners) == 0
    reach = min(shape) // 4
    middle = image[tuple(slice(size // 2 - reach, size // 2 + reach) for size in shape)]
    assert np.all(middle[..., 0] > 0)


def test_a_very_long_picture_is_finite():
    assert np.isfinite(photograph(0, 4, (16, 400))).all()


def test_a_subject_is_a_function_of_the_generator():
    first, second, other = (
        fundus.subject(np.random.default_rng(seed), (48, 40)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], other[0])


def test_the_colour_is_that_of_a_fundus(healthy):
    red, green, blue = healthy[:, 24:72, 24:72].mean(axis=(0, 1, 2))
    assert red > 1.3 * green > 1.3 * blue


def test_subjects_differ(healthy):
    """In brightness, hue and rim, and in more than their mean picture explains."""
    middle = healthy[:, 24:72, 24:72]
    assert np.std(middle.mean(axis=(1, 2, 3))) > 0.03
    assert np.std(np.log(middle[..., 0].mean(axis=(1, 2)) / middle[..., 1].mean(axis=(1, 2)))) > 0.1
    assert len({int(np.sum(image.max(axis=-1) > 0.05)) for image in healthy}) > len(healthy) // 2
    grey = middle.mean(axis=-1).reshape(len(middle), -1)
    correlation = np.corrcoef(grey)[np.triu_indices(len(grey), 1)]
    assert correlation.max() < 0.95


def test_every_grade_occurs_often_enough():
    assert sum(fundus.GRADE_SHARES) == pytest.approx(1)
    assert min(fundus.GRADE_SHARES) >= 0.12
    grades = [fundus.subject(np.random.default_rng(seed), (16, 16))[1] for seed in range(30)]
    assert set(grades) == {0, 1, 2, 3, 4}


def test_lesions_grow_with_the_grade():
    """The same eye at every grade: the disease alone changes it, and more so the worse it is."""
    area = np.zeros((4, 5))
    for seed in range(len(area)):
        pictures = [photograph(seed, grade) for grade in range(5)]
        area[seed] = [np.mean(np.abs(p - pictures[0]).max(axis=-1) > 0.04) for p in pictures]
    assert np.all(area[:, 1] > 0)
    assert np.all(area[:, 1] < area[:, 2])
    assert np.all(area[:, 2] < area[:, 3])
    assert np.all(area[:, 4] > area[:, 1])
    assert area[:, 4].mean() > area[:, 2].mean()


def test_only_grade_four_proliferates_and_always_does():
    rng = np.random.default_rng(0)
    assert not any(Proliferation.sample(rng, grade) for grade in range(4) for _ in range(10))
    samples = [Proliferation.sample(rng, 4) for _ in range(60)]
    assert all(samples)
    assert all(any(sign in signs for signs in samples) for sign in Proliferation)


@given(seed=st.integers(0, 2**32))
def test_disc_and_fovea_lie_as_in_life(seed):
    eye = Eye.sample(np.random.default_rng(seed), (128, 128))
    (disc_row, disc_column), (fovea_row, fovea_column) = eye.indices(np.stack([[0, 0], eye.fovea]))
    assert eye.right == (disc_column > fovea_column)
    assert fovea_row > disc_row
    # All of it in view: the macula in the middle third, the disc inside the rim.
    assert 128 / 3 < fovea_column < 256 / 3
    assert np.hypot(disc_row - 63.5, disc_column - 63.5) < 60


def test_left_and_right_eyes_occur_and_show(healthy):
    columns = np.array([disc_position(image)[1] for image in healthy])
    assert 0.2 < np.mean(columns > SHAPE[1] / 2) < 0.8
    assert np.all(np.abs(columns - SHAPE[1] / 2) > SHAPE[1] / 6)  # it is never in the middle


def test_the_photograph_tells_up_from_down(healthy):
    """The macula is darker than its surroundings below the level of the disc, not above it."""
    below = []
    for image in healthy:
        row, column = disc_position(image)
        millimetre = SHAPE[0] / 13.7
        temporal = -1 if column > SHAPE[1] / 2 else 1
        fovea = round(column + temporal * 4.5 * millimetre)
        dark = gaussian_filter(image[..., 1], 0.5 * millimetre)
        rows = np.arange(round(-1.5 * millimetre), round(1.5 * millimetre) + 1)
        below.append(rows[np.argmin(dark[row + rows, fovea])])
    assert np.mean(np.array(below) > 0) > 0.75


def test_the_superior_retina_has_more_pigment(healthy):
    ratio = np.log(healthy[..., 0] + 0.02) - np.log(healthy[..., 1] + 0.02)
    superior = ratio[:, 12:36, 28:68].mean(axis=(1, 2))
    inferior = ratio[:, 60:84, 28:68].mean(axis=(1, 2))
    assert np.mean(superior > inferior) > 0.7


def test_noise_is_the_same_everywhere(healthy):
    """What blur and anatomy cannot cause, differences between neighbours, betrays no place."""
    fine = np.diff(np.diff(healthy[..., 2], axis=1)[:, :, :-1], axis=2)
    quarters = [fine[:, a : a + 20, b : b + 20].std() for a in (24, 50) for b in (24, 50)]
    assert max(quarters) < 1.25 * min(quarters)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), row=st.integers(0, 39), column=st.integers(0, 59))
def test_places_and_indices_are_inverse(seed, row, column):
    eye = Eye.sample(np.random.default_rng(seed), (40, 60))
    np.testing.assert_allclose(eye.indices(eye.retina()[:, row, column]), (row, column), atol=1e-3)


def test_coverage_of_a_stroke_is_its_area():
    eye = Eye.sample(np.random.default_rng(0), (200, 200))
    ends = np.array([[0.5, 2.0]]), np.array([[1.0, 5.0]])
    stroke = Strokes(*ends, np.array([0.3]))
    area = np.linalg.norm(ends[1] - ends[0]) * 0.6 + np.pi * 0.3**2
    cover = coverage(eye, stroke)
    assert cover.max() <= 1
    assert cover.sum() * eye.pixel**2 == pytest.approx(area, rel=0.03)
    np.testing.assert_allclose(coverage(eye, stroke._replace(density=0.5)), cover / 2)


def test_strokes_out_of_sight_leave_no_trace():
    eye = Eye.sample(np.random.default_rng(0), (64, 64))
    nothing = Strokes(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    far = Strokes(np.array([[60.0, 60.0]]), np.array([[61.0, 60.0]]), np.array([0.5]))
    assert not coverage(eye, nothing).any()
    assert not coverage(eye, far).any()
