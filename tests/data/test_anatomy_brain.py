import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label

from ssl3d.data.anatomy import brain

SHAPE = (48, 48, 48)
T1CE, FLAIR, T1, T2 = range(4)


@pytest.fixture(scope="module")
def subjects():
    return [brain.subject(np.random.default_rng(seed), SHAPE) for seed in range(16)]


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32), shape=st.tuples(*[st.integers(12, 28)] * 3).filter(lambda s: max(s))
)
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


def test_resolution_changes_the_voxels_and_not_the_head():
    """Both grids show heads of the same size: their volumes in mm^3 agree on average."""

    def volume(size):
        draws = [brain.subject(np.random.default_rng(seed), (size,) * 3) for seed in range(6)]
        return np.mean([_head(image).sum() * np.prod(spacing) for image, _, spacing in draws])

    assert volume(24) == pytest.approx(volume(40), rel=0.1)


def test_subjects_differ(subjects):
    flat = np.stack([gaussian_filter(image[..., T1], 1).ravel() for image, _, _ in subjects])
    correlation = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
    assert correlation.max() < 0.95
    assert correlation.min() > 0.5  # yet all are heads, the same way up


@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (1, 5), (2, 5)])
def test_opposite_directions_can_be_told_apart(subjects, axis, factor):
    """Were directions arbitrary, the mean of n differences to the mirror image would cancel.

    Its energy would be 1 / n of theirs; `factor` says how many times that it has to be.
    """
    smooth = [gaussian_filter(image, (1, 1, 1, 0)) for image, _, _ in subjects]
    odd = np.stack([image - np.flip(image, axis) for image in smooth])
    energy = np.mean(np.mean(odd, axis=0) ** 2) / np.mean(odd**2)
    assert energy * len(subjects) > factor


def test_sides_differ_by_anatomy(subjects):
    """The dominant transverse sinus is on the right, the larger occipital horn on the left."""
    right_sinus, left_horn = [], []
    for image, _, _ in subjects:
        enhancement = (
            image[..., T1CE] / image[..., T1CE].mean() - image[..., T1] / image[..., T1].mean()
        )
        fluid = image[..., T2] / image[..., T2].mean()
        sinus, horn = (slice(4, 20), slice(16, 26)), (slice(8, 20), slice(22, 34))
        right_sinus.append(_right_excess(enhancement[:, *sinus], 6, 16))
        left_horn.append(-_right_excess(fluid[:, *horn], 2, 12))
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
    corners = np.array(
        [
            [image[x, y, z].mean() for x in ENDS for y in ENDS for z in ENDS]
            for image, _, _ in subjects
        ]
    )
    relative = (corners / corners.mean(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(relative, 1, atol=0.05)


ENDS = (slice(None, 6), slice(-6, None))


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
        assert image[classes == brain.OEDEMA, FLAIR].mean() > 1.5 * image[head, FLAIR].mean()
        enhancing, necrosis = classes == brain.ENHANCING, classes == brain.NECROSIS
        assert image[enhancing, T1CE].mean() > 1.3 * image[enhancing, T1].mean()
        assert image[enhancing, T1CE].mean() > 1.5 * image[necrosis, T1CE].mean()


def _head(image):
    """The head without the air around it, bool [*S]."""
    smooth = gaussian_filter(image[..., T1], 1)
    pieces, _ = label(smooth > 0.2 * np.percentile(smooth, 98))
    return binary_fill_holes(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)


def _right_excess(values, near, far):
    """Sum right minus left of the middle plane, over distances from it in voxels."""
    middle = len(values) // 2
    return values[middle + near : middle + far].sum() - values[middle - far : middle - near].sum()
