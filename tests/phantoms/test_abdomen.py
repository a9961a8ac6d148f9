"""The abdominal phantom: what a segmentation or a proxy task relies on must be in the picture."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ssl3d.phantoms import abdomen

SHAPE = (64, 64, 64)
SEEDS = range(5)
SHARE_SEEDS = range(24)


@cache
def patient(seed, shape=SHAPE):
    image, label, spacing = abdomen.subject(np.random.default_rng(seed), shape)
    return image[..., 0], label, spacing


def interior(image):
    """The middle of the trunk in plane, every slice."""
    x, y, _ = image.shape
    return image[x // 4 : -x // 4, y // 4 : -y // 4]


def test_the_same_seed_generates_the_same_patient():
    first, second = (abdomen.subject(np.random.default_rng(3), (24, 20, 16)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@settings(max_examples=12, deadline=None)
@given(shape=st.tuples(*[st.integers(6, 32)] * 3), seed=st.integers(0, 2**32 - 1))
def test_any_shape(shape, seed):
    image, label, spacing = abdomen.subject(np.random.default_rng(seed), shape)
    assert image.shape == (*shape, 1)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert label.shape == shape
    assert label.dtype == np.uint8
    assert set(np.unique(label)) <= {abdomen.BACKGROUND, abdomen.PANCREAS, abdomen.TUMOUR}
    np.testing.assert_allclose(np.multiply(shape, spacing), abdomen.FIELD_OF_VIEW_MM)


@pytest.mark.parametrize("seed", SEEDS)
def test_tissues_have_their_hounsfield_units(seed):
    image, label, _ = patient(seed)
    middle = ndimage.uniform_filter(image, 3)  # noise down to a few HU
    assert np.median(image[:3]) == pytest.approx(-1000, abs=15)
    body = image > -300
    assert 0.25 < body.mean() < 0.65
    for low, high, least in ((-130, -70, 0.08), (40, 75, 0.03), (85, 200, 0.1)):  # fat .. organs
        assert ((middle > low) & (middle < high)).sum() > least * body.sum(), (low, high)
    assert 300 < np.quantile(image, 0.9995) < 1000  # bone
    pancreas = image[ndimage.binary_erosion(label == abdomen.PANCREAS)]
    assert 70 < np.median(pancreas) < 115


@pytest.mark.parametrize("seed", SEEDS)
def test_pancreas_is_of_natural_volume_and_inside_the_body(seed):
    image, label, spacing = patient(seed)
    organ = label > 0
    millilitres = organ.sum() * np.prod(spacing) / 1000
    assert 30 < millilitres < 150
    assert (label == abdomen.PANCREAS).sum() > 250
    slices = [ndimage.binary_fill_holes(image[..., k] > -300) for k in range(image.shape[2])]
    body = ndimage.binary_opening(np.stack(slices, axis=-1), iterations=2)
    depth = ndimage.distance_transform_edt(body, sampling=spacing)
    assert depth[organ].min() > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_pancreas_runs_from_the_right_to_the_left_of_the_spine(seed):
    _, label, spacing = patient(seed)
    extent = np.ptp(np.argwhere(label > 0), axis=0) * spacing
    assert extent[0] > 70


def test_tumours_are_hypodense_and_grow_in_the_pancreas():
    tumours = 0
    for seed in SEEDS:
        image, label, _ = patient(seed)
        tumour, pancreas = label == abdomen.TUMOUR, label == abdomen.PANCREAS
        if tumour.any():
            tumours += 1
            assert (ndimage.binary_dilation(tumour) & pancreas).any()
            assert ndimage.label(tumour, np.ones((3, 3, 3)))[1] == 1
            assert image[tumour].mean() < image[ndimage.binary_erosion(pancreas)].mean() - 10
    assert tumours > 0


def test_most_but_not_all_patients_have_a_tumour():
    sick = [(patient(seed, (32, 32, 24))[1] == abdomen.TUMOUR).any() for seed in SHARE_SEEDS]
    assert np.mean(sick) == pytest.approx(abdomen.TUMOUR_SHARE, abs=0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_left_differs_from_right_top_from_bottom_and_back_from_front(seed):
    image, _, _ = patient(seed)
    smooth = ndimage.uniform_filter(image, 3)
    x, y, z = image.shape
    liver = (smooth > 80) & (smooth < 130)
    upper = liver[:, :, z // 2 :]
    assert upper[x // 2 :].sum() > 1.5 * upper[: x // 2].sum()
    top, bottom = interior(image)[..., -z // 8 :], interior(image)[..., : z // 8]
    assert top.mean() < bottom.mean() - 100  # lungs
    bone = np.argwhere(image[x // 3 : -x // 3] > 350)
    assert bone[:, 1].mean() < 0.45 * y


def test_patients_differ():
    images, labels = zip(*(patient(seed)[:2] for seed in SEEDS), strict=True)
    pairs = [(a, b) for a in SEEDS for b in SEEDS if a < b]
    for a, b in pairs:
        assert np.mean(np.abs(images[a] - images[b]) > 100) > 0.05
    overlaps = [
        2
        * ((labels[a] > 0) & (labels[b] > 0)).sum()
        / ((labels[a] > 0).sum() + (labels[b] > 0).sum())
        for a, b in pairs
    ]
    assert np.mean(overlaps) < 0.6  # a fixed position would not do as a segmentation


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_does_not_tell_the_position(seed):
    image, _, _ = patient(seed)
    corners = [
        image[tuple(slice(0, 9) if first else slice(-9, None) for first in ends)]
        for ends in product((True, False), repeat=3)
    ]
    spread = [corner.std() for corner in corners]
    offset = [corner.mean() for corner in corners]
    assert max(spread) < 1.3 * min(spread)
    assert np.ptp(offset) < np.mean(spread) / 2
