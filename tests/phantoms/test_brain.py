from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label

from ssl3d.phantoms import brain

SHAPE = (48, 48, 48)
T1CE, FLAIR, T1, T2 = range(4)
ENDS = (slice(None, 6), slice(-6, None))


@pytest.fixture(scope="module")
def subjects():
    return [brain.subject(np.random.default_rng(seed), SHAPE) for seed in range(16)]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.tuples(*[st.integers(12, 28)] * 3))
def test_every_shape_gives_a_valid_subject(seed, shape):
    image, labels, spacing = brain.subject(np.random.default_rng(seed), shape)
    assert image.shape == (*shape, 4)
    assert image.dtype == np.float32
    assert labels.shape == shape
    assert labels.dtype == np.uint8
    assert labels.max() < len(brain.CLASSES)
    assert np.isfinite(image).all()
    assert image.min() >= 0
    np.testing.assert_allclose(np.multiply(spacing, shape), brain.FIELD_OF_VIEW)


def test_a_subject_is_a_function_of_the_generator():
    first, second, other = (
        brain.subject(np.random.default_rng(seed), (24, 20, 28)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_subjects_differ(subjects):
    flat = np.stack([gaussian_filter(image[..., T1], 1).ravel() for image, _, _ in subjects])
    correlation = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
    assert correlation.max() < 0.98
    assert correlation.min() > 0.7  # yet all are heads, the same way up


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_opposite_directions_can_be_told_apart(subjects, axis):
    """Differences to the mirror image agree over subjects in more places than by chance.

    Chance level: a random half of the subjects mirrored.
    """
    smooth = [gaussian_filter(image, (1, 1, 1, 0)) / image.mean() for image, _, _ in subjects]
    odd = np.stack([image - np.flip(image, axis) for image in smooth])

    def systematic(differences):
        error = differences.std(axis=0) / len(differences) ** 0.5
        return np.mean(np.abs(differences.mean(axis=0)) > 5 * error + 0.01)

    rng = np.random.default_rng(0)
    signs = np.resize([-1, 1], (len(odd), 1, 1, 1, 1))
    chance = max(systematic(odd * rng.permutation(signs)) for _ in range(5))
    assert systematic(odd) > max(10 * chance, 0.001)


def test_sides_differ_by_anatomy(subjects):
    """The dominant transverse sinus is on the right, the larger occipital horn on the left."""
    right_sinus, left_horn = [], []
    for image, _, _ in subjects:
        enhancement = (
            image[..., T1CE] / image[..., T1CE].mean() - image[..., T1] / image[..., T1].mean()
        )
        fluid = image[..., T2] / image[..., T2].mean()
        sinus, horn = (slice(4, 15), slice(18, 27)), (slice(4, 16), slice(17, 27))
        right_sinus.append(_right_excess(enhancement[:, *sinus], 2, 14))
        left_horn.append(-_right_excess(fluid[:, *horn], 1, 10))
    assert np.mean(np.array(right_sinus) > 0) >= 0.8
    assert np.mean(np.array(left_horn) > 0) >= 0.8


def test_nothing_tells_where_the_field_of_view_ends(subjects):
    for image, _, _ in subjects:
        for axis in range(3):
            for side in (0, -1):
                face = np.take(image, side, axis)
                # Rician noise in air: mean 1.25 sigma, 5 sigma is rare among 9000 values.
                assert face.max() < 7 * face.mean() / 1.25


def test_noise_is_the_same_everywhere_in_air(subjects):
    ends = list(product(ENDS, repeat=3))
    corners = np.array([[image[end].mean() for end in ends] for image, _, _ in subjects])
    relative = (corners / corners.mean(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(relative, 1, atol=0.05)


def test_most_subjects_have_one_tumour_with_all_its_parts():
    labels = [brain.subject(np.random.default_rng(s), (24,) * 3)[1] for s in range(60)]
    affected = [classes for classes in labels if classes.any()]
    assert 0.65 < len(affected) / len(labels) < 0.92
    assert np.mean([set(np.unique(c)) == {0, 1, 2, 3} for c in affected]) > 0.9


def test_tumours_look_like_tumours_and_lie_inside_the_brain(subjects):
    affected = [case for case in subjects if case[1].any()]
    assert len(affected) >= 8
    for image, classes, spacing in affected:
        head = _head(image)
        depth = distance_transform_edt(head, sampling=spacing)
        assert depth[classes > 0].min() > 8  # mm: scalp and skull are thicker
        assert np.nonzero(classes)[2].mean() > np.nonzero(head)[2].mean() - 4  # not in the neck

        pieces, count = label(classes > 0)
        assert np.bincount(pieces.ravel())[1:].max() > 0.6 * (classes > 0).sum(), count
        level = image / image[head].mean(axis=0)  # every contrast has a gain of its own
        necrosis, oedema, enhancing = (level[classes == part].mean(axis=0) for part in (1, 2, 3))
        assert oedema[FLAIR] > 1.4
        assert enhancing[T1CE] > 1.3 * enhancing[T1]
        assert enhancing[T1CE] > 1.4 * necrosis[T1CE]


def _head(image):
    """The head without the air around it, bool [*S]."""
    smooth = gaussian_filter(image[..., T1], 1)
    pieces, _ = label(smooth > 0.2 * np.percentile(smooth, 98))
    return binary_fill_holes(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)


def _right_excess(values, near, far):
    """Sum right minus left of the middle plane, over distances from it in voxels."""
    middle = len(values) // 2
    return values[middle + near : middle + far].sum() - values[middle - far : middle - near].sum()
