"""What counts as foreground."""

from __future__ import annotations

import numpy as np
import pytest

from ssl3d.data.preparation.foreground import bounding_box, foreground
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
