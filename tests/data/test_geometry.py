"""Grids in every orientation, with nibabel and SimpleITK as oracles."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl3d.data import geometry, store
from ssl3d.data.geometry import Grid
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation.case import PreparationSettings, prepare_case
from ssl3d.data.preparation.recipes import Recipe
from tests.support.source_files import (
    SIGNED_PERMUTATIONS,
    orientation_affine,
    write_nifti,
    write_series,
)

VALUES = {0: 0, 1: 1}
MM = Recipe("mm", 3, "zscore", spacing=(1.0, 1.0, 1.0))
CUBE = Recipe("cube", 3, "zscore", size=(64, 64, 64), crop=True, foreground="nonzero")


def dice(a, b):
    return 2 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0))


def ellipsoid(shape, affine, radii=(25.0, 28.0, 26.0)):
    """A smooth shape off the centre of the grid, its radii along R, A, S in mm."""
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    centre = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3] + (1.3, -2.1, 0.7)
    inside = (((world - centre[:, None]) / np.asarray(radii)[:, None]) ** 2).sum(axis=0) < 1
    return inside.reshape(shape).astype(np.uint8)


def there_and_back(tmp_path, image, label, affine, recipe):
    """Dice of a label with itself after preparation and `to_source`, and the prepared case."""
    case = SourceCase(
        "case",
        "case",
        ((write_nifti(tmp_path / "image.nii", image, affine),),),
        write_nifti(tmp_path / "label.nii", label, affine),
    )
    settings = PreparationSettings(tmp_path, tmp_path / "out", recipe, ("image",), VALUES, 2)
    settings.output.mkdir(exist_ok=True)
    prepared = prepare_case(case, settings)
    stored = np.load(store.label_path(settings.output, "case"))
    back, back_affine = geometry.to_source(stored, prepared)
    np.testing.assert_allclose(back_affine, affine, atol=1e-5)
    assert back.shape == label.shape
    assert back.dtype == np.uint8
    return dice(back, label), prepared


@pytest.mark.parametrize(("axes", "signs"), SIGNED_PERMUTATIONS)
@pytest.mark.parametrize("recipe", [MM, CUBE], ids=lambda recipe: recipe.name)
def test_a_label_maps_back_to_every_orientation(tmp_path, axes, signs, recipe):
    shape = tuple(int(n) for n in np.asarray((64, 70, 66))[list(axes)])
    affine = orientation_affine(axes, signs)
    label = ellipsoid(shape, affine)
    image = (label * 100 + 1).astype(np.int16)
    image[0, 0, 0] = 0
    score, prepared = there_and_back(tmp_path, image, label, affine, recipe)
    assert score > 0.98
    assert nib.aff2axcodes(np.asarray(prepared.affine)) == ("R", "A", "S")


@pytest.mark.parametrize(("axes", "signs"), SIGNED_PERMUTATIONS[::5])
@pytest.mark.parametrize("recipe", [MM, CUBE], ids=lambda recipe: recipe.name)
def test_a_label_maps_back_to_thick_slices(tmp_path, axes, signs, recipe):
    affine = orientation_affine(axes, signs, (0.7, 0.7, 5.0))
    label = ellipsoid((96, 96, 14), affine)
    image = (label * 100 + 1).astype(np.int16)
    image[0, 0, 0] = 0
    score, _ = there_and_back(tmp_path, image, label, affine, recipe)
    assert score > 0.95


@pytest.mark.parametrize(
    ("axes", "signs"),
    [
        (axes, signs)
        for axes, signs in SIGNED_PERMUTATIONS
        if np.linalg.det(orientation_affine(axes, signs)[:3, :3]) > 0
    ],
)
def test_dicom_in_every_proper_orientation(tmp_path, axes, signs):
    affine = orientation_affine(axes, signs, (1.0, 1.5, 2.0))
    image = np.random.default_rng(0).integers(0, 500, (10, 12, 9)).astype(np.int16)
    folder = write_series(tmp_path / "series", image, affine)
    case = SourceCase("case", "case", (tuple(sorted(folder.iterdir())),))
    recipe = Recipe("as is", 3, "zscore")
    (tmp_path / "out").mkdir()
    prepared = prepare_case(
        case, PreparationSettings(tmp_path, tmp_path / "out", recipe, ("CT",), {}, 0)
    )
    stored = np.load(store.image_path(tmp_path / "out", "case"))[..., 0]
    expected = nib.as_closest_canonical(nib.Nifti1Image(image, affine))
    np.testing.assert_allclose(np.asarray(prepared.affine), expected.affine, atol=1e-4)
    shift, scale = (prepared.extra["intensity"][key][0] for key in ("shift", "scale"))
    values = np.clip(
        expected.get_fdata(),
        prepared.extra["intensity"]["low"][0],
        prepared.extra["intensity"]["high"][0],
    )
    np.testing.assert_allclose(stored, (values - shift) / scale, atol=2e-3)


@pytest.mark.parametrize(("axes", "signs"), SIGNED_PERMUTATIONS)
def test_canonical_orientation_is_nibabels(axes, signs):
    array = np.random.default_rng(0).normal(size=(5, 6, 7, 2))
    affine = orientation_affine(axes, signs, (1.0, 2.0, 3.0))
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    ours, ours_affine = geometry.to_canonical(array, affine)
    np.testing.assert_array_equal(ours, expected.get_fdata())
    np.testing.assert_allclose(ours_affine, expected.affine)
    grid = geometry.canonical_grid(Grid(array.shape[:3], affine))
    assert grid.shape == ours.shape[:3]
    np.testing.assert_allclose(grid.affine, ours_affine)


def itk_image(array, affine):
    """[X, Y, Z] and RAS affine as an ITK image."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize(
    ("order", "interpolator"), [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)]
)
@pytest.mark.parametrize("spacing", [(0.83, 0.91, 1.13), (1.0, 2.0, 0.53)])
def test_resampling_finer_is_simpleitks(order, interpolator, spacing):
    """Where the step is below a voxel no smoothing is added, and both do the same."""
    random = np.random.default_rng(1)
    # Odd sides: the middle of an even one is a tie that may fall to either neighbour.
    array = random.normal(size=(9, 11, 13)).astype(np.float32)
    affine = orientation_affine((1, 0, 2), (1, -1, 1), (1.3, 2.0, 1.2))
    target = geometry.target_grid(Grid(array.shape, affine), spacing=spacing)
    ours = geometry.resample(array, affine, target, order)
    reference = itk_image(np.zeros(target.shape, np.float32), target.affine)
    theirs = sitk.Resample(itk_image(array, affine), reference, sitk.Transform(), interpolator)
    theirs = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    inside = (slice(2, -2),) * 3  # at the border we repeat the last value, ITK gives 0
    if order == "linear":
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-5)
    else:
        np.testing.assert_array_equal(ours[inside], theirs[inside])


def test_resampling_coarser_averages_instead_of_aliasing():
    stripes = np.zeros((64, 8, 8), np.float32)
    stripes[::2] = 1
    target = geometry.target_grid(Grid(stripes.shape, np.eye(4)), size=(16, 8, 8))
    coarse = geometry.resample(stripes, np.eye(4), target)
    np.testing.assert_allclose(coarse, 0.5, atol=0.1)


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_resampling_keeps_a_ramp(order):
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 6, 6))
    target = geometry.target_grid(Grid(ramp.shape, np.eye(4)), size=(35, 6, 6))
    fine = geometry.resample(ramp, np.eye(4), target, order)
    positions = (np.linalg.inv(np.eye(4)) @ target.affine)[0, [0, 3]] @ [np.arange(35), np.ones(35)]
    np.testing.assert_allclose(fine[5:-5, 0, 0], positions[5:-5], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    sides=st.tuples(*[st.integers(4, 12)] * 3),
    target=st.tuples(*[st.integers(2, 20)] * 3),
    seed=st.integers(0, 1000),
)
def test_labels_are_never_blended(values, sides, target, seed):
    label = np.random.default_rng(seed).choice(values, sides).astype(np.uint8)
    grid = geometry.target_grid(Grid(sides, np.eye(4)), size=target)
    resampled = geometry.resample(label, np.eye(4), grid, "nearest")
    assert resampled.shape == target
    assert resampled.dtype == np.uint8
    assert set(np.unique(resampled)) <= set(values)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(*[st.integers(4, 40)] * 3),
    old=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    new=st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
def test_a_spacing_is_kept_and_the_grid_covers_the_old_one(sides, old, new):
    grid = Grid(sides, np.diag([*old, 1.0]))
    target = geometry.target_grid(grid, spacing=new)
    tolerance = geometry.INDEX_TOLERANCE
    np.testing.assert_allclose(target.spacing, new, rtol=2 * tolerance)
    for axis in range(3):
        extent = target.shape[axis] * target.spacing[axis]
        assert (
            extent
            > (sides[axis] - 2 * tolerance * (1 + sides[axis])) * old[axis] - 0.01 * new[axis]
        )
        assert extent < sides[axis] * old[axis] + 1.01 * new[axis] + 0.01


def test_cropped_voxels_become_background(tmp_path):
    image = np.zeros((30, 32, 34), np.int16)
    image[5:25, 8:28, 4:30] = np.random.default_rng(0).integers(50, 200, (20, 20, 26))
    label = (image > 0).astype(np.uint8)
    affine = orientation_affine((2, 0, 1), (-1, 1, -1))
    score, prepared = there_and_back(
        tmp_path, image, label, affine, Recipe("crop", 3, "zscore", "nonzero", True)
    )
    assert score == 1.0
    assert prepared.shape == (20, 26, 20)
    # A prediction of label 1 everywhere stays inside the crop.
    back, _ = geometry.to_source(np.ones(prepared.shape, np.uint8), prepared)
    np.testing.assert_array_equal(back, label)
    probabilities = np.ones((*prepared.shape, 2), np.float32)
    back, _ = geometry.to_source(probabilities, prepared, "linear")
    assert back.shape == (*label.shape, 2)
    np.testing.assert_array_equal(back[..., 1], label)


@pytest.mark.parametrize(
    ("recipe", "reindexed"), [(Recipe("crop", 3, "zscore", "nonzero", True), True), (CUBE, False)]
)
def test_slabs_of_the_source_grid_are_the_whole(tmp_path, monkeypatch, recipe, reindexed):
    image = np.zeros((30, 32, 34), np.int16)
    image[5:25, 8:28, 4:30] = np.random.default_rng(0).integers(50, 200, (20, 20, 26))
    affine = orientation_affine((2, 0, 1), (-1, 1, -1))
    _, case = there_and_back(tmp_path, image, (image > 0).astype(np.uint8), affine, recipe)
    probabilities = np.random.default_rng(1).random((*case.shape, 2), np.float32)
    whole, _ = geometry.to_source(probabilities, case, "linear")
    assert geometry.is_reindexed(case) == reindexed
    grid = geometry.source_grid(case)
    assert grid.shape == image.shape
    np.testing.assert_allclose(grid.affine, affine)
    for planes in (1, 7, 100):
        monkeypatch.setattr(geometry, "SLAB", planes * image[0].size)
        slabs = list(geometry.to_source_slabs(probabilities, case))
        assert len(slabs) == -(-30 // planes)
        together = np.full_like(whole, np.nan)
        for rows, part in slabs:
            together[rows] = part
        np.testing.assert_allclose(together, whole, atol=1e-6)


def test_a_phantom_has_no_source_grid(volumes):
    case = volumes.cases[0]
    assert geometry.source_grid(case) is None
    assert not geometry.is_reindexed(case)
    with pytest.raises(ValueError, match="case_00 has no source file"):
        geometry.to_source(np.zeros(case.shape), case)


def test_a_label_maps_back_to_oblique_and_sheared_grids(tmp_path):
    angle = 0.3
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[1, 2] = 0.2  # a tilted gantry
    label = ellipsoid((64, 66, 62), affine)
    image = (label * 100 + 1).astype(np.int16)
    score, _ = there_and_back(tmp_path, image, label, affine, MM)
    assert score > 0.98


def test_pictures_are_not_turned(tmp_path):
    array = np.arange(24.0).reshape(4, 6)
    ours, affine = geometry.to_canonical(array, np.eye(3))
    np.testing.assert_array_equal(ours, array)
    np.testing.assert_array_equal(affine, np.eye(3))
    assert geometry.target_grid(Grid((100, 50), np.eye(3)), size=(10, 10)).spacing == (10, 5)


def test_rotated_grids_are_refused():
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="rotated"):
        geometry.resample(np.zeros((4, 4, 4)), np.eye(4), Grid((4, 4, 4), turned))
