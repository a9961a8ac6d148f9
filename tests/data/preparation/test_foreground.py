"""What counts as foreground."""

from __future__ import annotations

import numpy as np
import pytest

from ssl3d.data.preparation.foreground import bounding_box, find_foreground, foreground
from ssl3d.errors import UserError
from tests.support import source_files as files


def test_the_body_excludes_table_and_air():
    image = np.full((60, 60, 40, 1), -1000.0)
    image[10:40, 15:45, :] = 40
    image[20:30, 20:30, 10:30] = -900  # lung
    image[50:52, 5:55, :] = 200  # the table
    mask = foreground(image, "body")
    assert bounding_box(mask) == ((10, 40), (15, 45), (0, 40))


def test_the_head_excludes_the_noise_around_it():
    random = np.random.default_rng(0)
    image = np.abs(random.normal(0, 8, (48, 50, 52, 1)))
    image[10:40, 8:44, 9:45] += 300
    image[20:25, 20:25, 20:25] = 5  # a dark ventricle stays inside
    mask = foreground(image, "head")
    assert bounding_box(mask) == ((10, 40), (8, 44), (9, 45))
    assert mask[22, 22, 22]


def test_nonzero_is_the_union_of_the_channels():
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


def test_an_image_without_foreground_is_refused():
    with pytest.raises(UserError, match="another modality"):
        foreground(np.full((9, 9, 9, 1), -1000.0), "body")


def test_an_empty_mask_has_no_box():
    with pytest.raises(UserError, match="no foreground is left"):
        bounding_box(np.zeros((4, 5), bool))


def head(seed=0, shape=(96, 96, 72)):
    """Tissue of 80 in an ellipsoid, noise of 15 everywhere; its mask."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    inside = ((places / (0.7, 0.8, 0.85)) ** 2).sum(-1) < 1
    noise = np.abs(random.normal(0, 15, shape))
    return noise + inside * (80 + random.normal(0, 15, shape)), inside


def vessel(image):
    image[40:50, 40:50, 10:60] = 900


def vessels(image):
    for i, (x, y) in enumerate(np.random.default_rng(1).integers(20, 70, (12, 2))):
        image[x : x + 3, y : y + 3, 8 + i : 60] = 500


def marker_in_the_air(image):
    image[2:8, 2:8, 30:40] = 3000


@pytest.mark.parametrize("brighten", [vessel, vessels, marker_in_the_air])
def test_what_is_far_brighter_than_the_tissue_is_not_the_head(brighten):
    image, inside = head()
    brighten(image)
    found = find_foreground(image[..., None], "head")
    assert "far brighter" in found.remark
    for (start, stop), (first, end) in zip(
        bounding_box(found.mask), bounding_box(inside), strict=True
    ):
        assert start <= first + 1
        assert stop >= end - 1
        assert stop - start < end - first + 12  # the air around it is still cut
    assert found.kept > 0.99 * found.bright


def test_an_ordinary_head_needs_no_second_look():
    image, _ = head()
    assert find_foreground(image[..., None], "head").remark == ""
    image *= np.linspace(0.2, 1, image.shape[2])  # the coil is at the top
    assert find_foreground(image[..., None], "head").remark == ""


def near_the_coil(image):
    _, inside = head()
    image[:] = np.where(inside, image * np.exp(-np.linspace(0, 20, image.shape[2])), 0)


def lesion(image):
    image[:] = np.random.default_rng(0).normal(200, 20, image.shape)  # no air at all
    image[30:40, 30:40, 30:40] = 3000


@pytest.mark.parametrize("dim", [near_the_coil, lesion])
def test_what_fills_a_small_part_of_the_image_is_no_head(dim):
    image, _ = head()
    dim(image)
    found = find_foreground(image[..., None], "head")
    assert found.mask.all()
    assert "all of it is kept" in found.remark


@pytest.mark.parametrize(("kind", "air", "tissue"), [("body", -1000, 40), ("head", 5, 200)])
def test_both_legs_are_foreground(kind, air, tissue):
    image = np.random.default_rng(0).normal(air, 3, (96, 60, 60, 1))
    image[8:38, 10:50] = tissue
    image[50:80, 10:50] = tissue + 10
    found = find_foreground(image, kind)
    assert bounding_box(found.mask)[0] == (8, 80)
    assert "several parts" in found.remark


def test_the_share_of_the_table_that_is_cut_is_counted():
    image = np.full((60, 60, 40, 1), -1000.0)
    image[10:40, 15:45] = 40
    image[50:52, 5:55] = 200  # the table
    found = find_foreground(image, "body")
    assert (found.bright, found.kept) == (30 * 30 * 40 + 2 * 50 * 40, 30 * 30 * 40)
