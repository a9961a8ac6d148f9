import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

from ssl3d.figures import slices


def test_middle_views_are_axial_coronal_and_sagittal():
    volume = np.random.default_rng(0).random((4, 6, 8, 2))
    axial, coronal, sagittal = slices.middle_views(volume)
    for (shown, cut, view), axes, index in zip(
        (axial, coronal, sagittal), ((0, 1), (0, 2), (1, 2)), (2, 1, 0), strict=True
    ):
        assert (shown, cut) == (axes, index)
        np.testing.assert_array_equal(view, np.take(volume, volume.shape[index] // 2, index))


def test_a_picture_has_one_view():
    picture = np.random.default_rng(0).random((4, 6, 3))
    ((shown, cut, view),) = slices.middle_views(picture)
    assert (shown, cut) == ((0, 1), None)
    assert view is picture


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 6, 3), True), ((4, 6, 1), False), ((4, 6, 8, 3), False)]
)
def test_only_pictures_of_three_channels_are_in_colour(shape, expected):
    assert slices.is_photograph(np.zeros(shape)) is expected


def test_the_window_is_of_each_channel():
    image = np.stack([np.arange(101), 10 * np.arange(101)], -1).reshape(101, 1, 2)
    np.testing.assert_allclose(slices.window(image), [[1, 10], [99, 990]])


def test_what_is_outside_the_window_saturates_and_anterior_is_up():
    view = np.arange(12.0).reshape(3, 4, 1)
    axes = Figure().subplots()
    slices.show(axes, view, colour=False, limits=np.array([[2.0], [8.0]]))
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), np.clip((view[..., 0].T - 2) / 6, 0, 1))
    assert image.origin == "lower"
    assert not axes.get_xticks().size


def test_photographs_keep_their_rows_and_colours():
    view = np.random.default_rng(0).random((3, 4, 3))
    axes = Figure().subplots()
    slices.show(axes, view, colour=True, limits=np.array([[0.0] * 3, [1.0] * 3]))
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), view, atol=1e-6)
    assert image.origin == "upper"


def test_the_patients_right_is_on_the_left_of_a_slice_but_not_of_a_photograph():
    limits = np.array([[0.0], [1.0]])
    axes = Figure().subplots()
    slices.show(axes, np.zeros((3, 4, 1)), colour=False, limits=limits)
    assert axes.get_xlim() == (2.5, -0.5)
    axes = Figure().subplots()
    slices.show(axes, np.zeros((3, 4, 3)), colour=True, limits=np.repeat(limits, 3, 1))
    assert axes.get_xlim() == (-0.5, 3.5)


@pytest.mark.parametrize(
    ("cut", "plane", "left", "right", "top", "bottom"),
    [
        (2, "axial", "R", "L", "A", "P"),
        (1, "coronal", "R", "L", "S", "I"),
        (0, "sagittal", "A", "P", "S", "I"),
    ],
)
def test_planes_sides_and_scale_are_named(cut, plane, left, right, top, bottom):
    axes = Figure().subplots()
    slices.annotate(axes, cut, (0.5, 0.5, 2.0), width=100)
    assert axes.get_title() == plane
    *letters, scale = axes.texts
    found = {text.get_text(): text.get_position() for text in letters}
    assert found[left][0] < 0.1 < 0.9 < found[right][0]
    assert found[bottom][1] < 0.1 < 0.9 < found[top][1]
    # 10 mm of 50 mm across.
    assert scale.get_text() == "10 mm"
    (line,) = axes.lines
    assert np.ptp(line.get_xdata()) == pytest.approx(0.2)


def test_an_overlay_colours_each_class_where_it_is():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:4], labels[4:, 5:] = 1, 2
    axes = Figure().subplots()
    slices.show(axes, np.zeros((6, 8, 1)), False, np.array([[0.0], [1.0]]))
    slices.overlay(axes, labels, colour=False)
    rgba = axes.images[1].get_array()
    for index in (1, 2):
        expected = matplotlib.colors.to_rgb(slices.colour_of(index))
        np.testing.assert_allclose(rgba[index == labels.T][:, :3], [expected] * 6, atol=1e-6)
    np.testing.assert_array_equal(rgba[..., 3] > 0, labels.T > 0)
    assert axes.get_xlim() == (5.5, -0.5)
