"""What counts as foreground, and what the intensities become."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d.data import intensity
from ssl3d.data.preparation import recipes
from ssl3d.data.preparation.foreground import bounding_box, foreground
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.errors import UserError
from tests.support import source_files as files


def test_the_body_without_table_and_air():
    image = np.full((60, 60, 40, 1), -1000.0)
    image[10:40, 15:45, :] = 40
    image[20:30, 20:30, 10:30] = -900  # lung
    image[50:52, 5:55, :] = 200  # the table
    mask = foreground(image, "body")
    assert bounding_box(mask) == ((10, 40), (15, 45), (0, 40))


def test_the_head_without_the_noise_around_it():
    random = np.random.default_rng(0)
    image = np.abs(random.normal(0, 8, (48, 50, 52, 1)))
    image[10:40, 8:44, 9:45] += 300
    image[20:25, 20:25, 20:25] = 5  # a dark ventricle stays inside
    mask = foreground(image, "head")
    assert bounding_box(mask) == ((10, 40), (8, 44), (9, 45))
    assert mask[22, 22, 22]


def test_a_brain_is_what_any_channel_shows():
    image = np.zeros((20, 20, 20, 2))
    image[5:10, 5:10, 5:10, 0] = 3
    image[8:15, 8:15, 8:15, 1] = -2
    assert bounding_box(foreground(image, "nonzero")) == ((5, 15),) * 3


def test_the_disc_of_a_fundus():
    image = files.fundus(0).astype(np.float32)
    mask = foreground(image, "disc")
    (top, bottom), (left, right) = bounding_box(mask)
    assert (top, left) == (6, 6)
    assert (bottom, right) == (58, 58)


def test_nothing_in_the_foreground_is_refused():
    with pytest.raises(UserError, match="another modality"):
        foreground(np.full((9, 9, 9, 1), -1000.0), "body")


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.1, 1e4),
    shift=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_mr_forgets_the_scanners_units(scale, shift, seed, masked):
    image = np.random.default_rng(seed).gamma(2.0, size=(9, 10, 11, 2))
    mask = image[..., 0] > 0.5 if masked else None
    first = intensity.normalise_mr(image, mask)
    second = intensity.normalise_mr(image * scale + shift, mask)
    np.testing.assert_allclose(first, second, atol=2e-2)
    inside = first if mask is None else first[mask]
    np.testing.assert_allclose(inside.mean(axis=tuple(range(inside.ndim - 1))), 0, atol=1e-3)
    np.testing.assert_allclose(inside.std(axis=tuple(range(inside.ndim - 1))), 1, atol=1e-3)


def test_a_window_is_the_same_for_every_case():
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


def test_a_black_colour_does_not_blow_up():
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


def test_recipes_say_what_they_are():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.rank == (2 if name in ("retina", "picture") else 3)
        assert recipe.size is None or len(recipe.size) == recipe.rank
        assert recipe.spacing is None or recipe.size is None
