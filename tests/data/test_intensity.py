"""Normalisations of MR, CT and pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d.data import intensity
from ssl3d.data.preparation import recipes
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.errors import UserError
from tests.support import source_files as files


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.1, 1e4),
    shift=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_mr_normalisation_is_invariant_to_scanner_units(scale, shift, seed, masked):
    image = np.random.default_rng(seed).gamma(2.0, size=(9, 10, 11, 2))
    mask = image[..., 0] > 0.5 if masked else None
    first = intensity.normalise_mr(image, mask)
    second = intensity.normalise_mr(image * scale + shift, mask)
    np.testing.assert_allclose(first, second, atol=2e-2)
    inside = first if mask is None else first[mask]
    np.testing.assert_allclose(inside.mean(axis=tuple(range(inside.ndim - 1))), 0, atol=1e-3)
    np.testing.assert_allclose(inside.std(axis=tuple(range(inside.ndim - 1))), 1, atol=1e-3)


def test_a_window_maps_hu_to_fixed_values():
    image = np.array([-1000.0, -150, 50, 250, 3000]).reshape(5, 1, 1, 1)
    np.testing.assert_allclose(intensity.normalise_ct(image).ravel(), [-1, -1, 0, 1, 1])
    with pytest.raises(UserError, match="lower HU"):
        intensity.ct_scaling((100, -100))


def test_minmax_is_joint_or_per_channel():
    image = np.stack([np.linspace(0, 10, 27), np.linspace(0, 100, 27)], -1).reshape(3, 3, 3, 2)
    joint = intensity.apply(image.copy(), intensity.minmax_scaling(image, joint=True))
    assert joint[..., 0].max() == pytest.approx(0.1)
    own = intensity.apply(image.copy(), intensity.minmax_scaling(image))
    assert own[..., 0].max() == own[..., 1].max() == 1
    recipe = dataclasses.replace(RECIPES["brats"], intensity="minmax")
    assert recipes.scaling(image, np.ones((3, 3, 3), bool), recipe).high == (100, 100)


def test_a_black_colour_is_not_amplified():
    picture = files.fundus(0).astype(np.float32)
    picture[..., 2] = 0
    normalised = intensity.normalise_picture(picture, picture[..., 0] > 20)
    assert np.abs(normalised).max() < 10
    assert not normalised[..., 2].any()


def test_a_constant_channel_is_refused():
    image = np.ones((4, 4, 4, 2))
    image[..., 0] = np.arange(64).reshape(4, 4, 4)
    with pytest.raises(UserError, match="channel 1 is constant"):
        intensity.mr_scaling(image)


def test_the_display_window_spans_all_but_two_percent_of_each_channel():
    image = np.random.default_rng(0).normal([[0, 5]], [[1, 3]], (40, 50, 2))
    low, high = intensity.display_window(image)
    shown = (low < image) & (image < high)
    np.testing.assert_allclose(shown.mean(axis=(0, 1)), 0.98, atol=0.001)
