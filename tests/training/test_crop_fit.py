"""The crop of a proxy task lies inside the images it is cut from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d.training import crop_fit

shapes = (
    st.integers(2, 3)
    .flatmap(
        lambda rank: st.lists(
            st.lists(st.integers(4, 40), min_size=rank, max_size=rank), min_size=1
        )
    )
    .map(np.asarray)
)


@given(shapes, st.integers(4, 40), st.floats(0.5, 1), st.booleans(), st.sampled_from([1, 2]))
def test_every_image_kept_holds_the_crop_and_enough_are_kept(shapes, side, share, cube, multiple):
    rank = shapes.shape[1]
    crop, holds = crop_fit.fit(
        shapes, (side,) * rank, share, equal=range(rank) if cube else (), multiple=multiple
    )
    assert (shapes[holds] >= crop).all()
    assert holds.sum() >= share * len(shapes) - 1e-9
    assert max(crop) <= side
    assert not cube or len(set(crop)) == 1
    assert all(length % multiple == 0 for length in crop)


@given(shapes)
def test_with_full_coverage_the_crop_is_the_smallest_side_of_each_axis(shapes):
    crop, holds = crop_fit.fit(shapes, (1000,) * shapes.shape[1], 1.0)
    assert crop == tuple(shapes.min(0))
    assert holds.all()


def test_one_small_image_does_not_shrink_the_crop_of_all():
    shapes = np.array([[40, 40, 40]] * 30 + [[40, 40, 7]])
    crop, holds = crop_fit.fit(shapes, (32, 32, 32), 0.95)
    assert crop == (32, 32, 32)
    assert list(np.flatnonzero(~holds)) == [30]


def test_images_too_small_for_the_task_are_left_out_whatever_the_coverage():
    shapes = np.array([[40, 40]] * 3 + [[9, 40]] * 7)
    crop, holds = crop_fit.fit(shapes, (32, 32), 1.0, works=lambda crop: min(crop) >= 16)
    assert crop == (32, 32)
    assert list(np.flatnonzero(holds)) == [0, 1, 2]


@pytest.mark.parametrize("least", [41, 1000])
def test_no_crop_where_no_image_is_large_enough(least):
    shapes = np.full((5, 3), 40)
    assert crop_fit.fit(shapes, (64,) * 3, 1.0, works=lambda crop: min(crop) >= least) is None
