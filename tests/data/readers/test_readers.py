"""Formats against each other and against the libraries that define them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from ssl3d.data import geometry, readers, store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation.case import PreparationSettings, prepare_case
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.errors import UserError
from tests.support import source_files as files

AFFINE = files.orientation_affine((1, 2, 0), (-1, 1, 1), (0.7, 0.8, 2.5))
# GDCM's names; the first two are what scanners and archives write most.
COMPRESSIONS = [
    None,
    "JPEGLosslessProcess14_1",
    "JPEG2000Lossless",
    "JPEGLSLossless",
    "RLELossless",
]
VALUES = np.random.default_rng(0).integers(-500, 900, (12, 10, 9)).astype(np.int16)


def read(path, rank=3):
    paths = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
    return readers.read_image(paths, rank)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "f4", "f8", "i8"])
def test_nifti_is_what_nibabel_reads(tmp_path, name, kind, dtype):
    values = np.abs(VALUES) % 200 if dtype == "u1" else VALUES
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    picture = kind(values.astype(dtype), AFFINE, header, dtype=np.dtype(dtype))
    nib.save(picture, tmp_path / name)
    volume = read(tmp_path / name)
    theirs = nib.load(tmp_path / name)
    np.testing.assert_array_equal(volume.array[..., 0], theirs.get_fdata())
    np.testing.assert_array_equal(volume.affine, theirs.affine)
    assert volume.array.dtype == np.float32
    header = readers.read_header((tmp_path / name,), 3)
    assert header.grid.shape == volume.array.shape[:3]
    np.testing.assert_array_equal(header.grid.affine, volume.affine)


def test_nifti_scale_factors_and_units(tmp_path):
    picture = nib.Nifti1Image(VALUES, np.diag([0.001, 0.001, 0.002, 1]))
    picture.header.set_slope_inter(0.5, -3)
    picture.header.set_xyzt_units("meter")
    picture.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(VALUES, None, picture.header), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]))
    header["scl_slope"], header["scl_inter"] = 0.5, -3
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(data[348:]))
    volume = read(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.array[..., 0], VALUES * 0.5 - 3)
    np.testing.assert_allclose(geometry.spacing_of(volume.affine), (1, 1, 2), rtol=1e-6)


def test_a_gzip_file_of_several_members_is_read_whole(tmp_path):
    files.write_nifti(tmp_path / "a.nii", VALUES)
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]))
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").array[..., 0], VALUES)


def test_four_dimensions_are_channels(tmp_path):
    stack = np.stack([VALUES, -VALUES], axis=-1)
    np.testing.assert_array_equal(
        read(files.write_nifti(tmp_path / "a.nii", stack)).array, stack.astype(np.float32)
    )
    single = VALUES[..., None, None]
    assert read(files.write_nifti(tmp_path / "b.nii", single)).array.shape == (*VALUES.shape, 1)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz"])
def test_formats_agree(tmp_path, name):
    """SimpleITK writes; what we read is what nibabel and SimpleITK say of it."""
    spacing = geometry.spacing_of(AFFINE)
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    picture = sitk.GetImageFromArray(VALUES.transpose(2, 1, 0))
    picture.SetSpacing(spacing)
    picture.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    picture.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(picture, str(tmp_path / name))
    volume = read(tmp_path / name)
    np.testing.assert_array_equal(volume.array[..., 0], VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert readers.read_header((tmp_path / name,), 3).grid.shape == VALUES.shape


def test_vector_nrrd_is_channels(tmp_path):
    stack = np.stack([VALUES, VALUES + 1], axis=-1)
    picture = sitk.GetImageFromArray(stack.transpose(2, 1, 0, 3), isVector=True)
    sitk.WriteImage(picture, str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").array, stack)
    assert readers.read_header((tmp_path / "a.nrrd",), 3).channels == 2


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("intercept", [0.0, -1024.0])
def test_dicom_is_nifti_voxel_by_voxel(tmp_path, compress, intercept):
    nifti = read(files.write_nifti(tmp_path / "a.nii", VALUES, AFFINE))
    folder = files.write_series(
        tmp_path / "series",
        VALUES,
        AFFINE,
        intercept=intercept,
        compress=compress,
        order=np.random.default_rng(1),
    )
    dicom = read(folder)
    ours, ours_affine = geometry.to_canonical(dicom.array, dicom.affine)
    theirs, theirs_affine = geometry.to_canonical(nifti.array, nifti.affine)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours_affine, theirs_affine, atol=1e-4)


@pytest.mark.parametrize("recipe", ["hippocampus", "ct", "pancreas"])
def test_prepared_dicom_is_prepared_nifti(tmp_path, recipe):
    sources = {
        "nifti": (files.write_nifti(tmp_path / "a.nii.gz", VALUES, AFFINE),),
        "dicom": tuple(sorted(files.write_series(tmp_path / "s", VALUES, AFFINE).iterdir())),
        "frames": (files.write_multiframe(tmp_path / "m.dcm", VALUES, AFFINE),),
    }
    settings = PreparationSettings(tmp_path, tmp_path / "out", RECIPES[recipe], ("CT",), {}, 0)
    prepared = {
        name: prepare_case(SourceCase(name, name, (paths,)), settings)
        for name, paths in sources.items()
    }
    arrays = {name: np.load(store.image_path(settings.output, name)) for name in sources}
    for name in ("dicom", "frames"):
        np.testing.assert_array_equal(arrays[name], arrays["nifti"])
        assert prepared[name].extra["content"] == prepared["nifti"].extra["content"]
        np.testing.assert_allclose(prepared[name].affine, prepared["nifti"].affine, atol=1e-4)


def test_simpleitk_reads_the_series_alike(tmp_path):
    folder = files.write_series(tmp_path / "s", VALUES, np.diag([0.7, 0.8, 2.5, 1.0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    sitk.WriteImage(theirs, str(tmp_path / "a.nrrd"))
    expected = read(tmp_path / "a.nrrd")
    ours = read(folder)
    np.testing.assert_array_equal(
        geometry.to_canonical(ours.array, ours.affine)[0],
        geometry.to_canonical(expected.array, expected.affine)[0],
    )
    np.testing.assert_allclose(
        geometry.to_canonical(ours.array, ours.affine)[1],
        geometry.to_canonical(expected.array, expected.affine)[1],
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "CT_small.dcm"]
)
def test_real_slices_are_named_as_slices(name):
    with pytest.raises(UserError, match="is a slice"):
        readers.read_image((Path(get_testdata_file(name)),), 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1", "CMYK"])
def test_pictures_become_grey_or_colour(tmp_path, mode):
    picture = Image.fromarray(files.fundus(0))
    if mode == "I;16":
        picture = Image.fromarray((np.asarray(picture)[..., 0].astype(np.uint16)) * 257)
    else:
        picture = picture.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    volume = read(path, rank=2)
    channels = 1 if mode in ("L", "I;16", "1") else 3
    assert volume.array.shape == (64, 64, channels)
    assert readers.read_header((path,), 2).channels == channels
    assert 0 <= volume.array.min() <= volume.array.max() <= 255
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(volume.array, files.fundus(0))
    if mode == "I;16":
        np.testing.assert_array_equal(volume.array[..., 0], files.fundus(0)[..., 0])


def test_pictures_are_turned_upright(tmp_path):
    picture = Image.fromarray(files.fundus(0)[:40])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg", rank=2).array.shape == (64, 40, 3)
    assert readers.read_header((tmp_path / "a.jpg",), 2).grid.shape == (64, 40)


def test_ranks_are_not_mixed(tmp_path):
    Image.fromarray(files.fundus(0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a 2D picture, but a 3D volume"):
        read(tmp_path / "a.png", rank=3)
    files.write_nifti(tmp_path / "a.nii", VALUES)
    with pytest.raises(UserError, match="a 3D volume, but a 2D picture"):
        read(tmp_path / "a.nii", rank=2)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_labels_are_whole_numbers(tmp_path, name, dtype):
    label = files.segmentation().astype(dtype)
    if name.endswith("nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(label.transpose(2, 1, 0)), str(tmp_path / name))
    else:
        files.write_nifti(tmp_path / name, label)
    volume = readers.read_label(tmp_path / name, 3)
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array, files.segmentation())


def test_picture_labels(tmp_path):
    label = (files.fundus(0)[..., 0] > 30).astype(np.uint8)
    Image.fromarray(label).save(tmp_path / "a.png")
    np.testing.assert_array_equal(readers.read_label(tmp_path / "a.png", 2).array, label)
    Image.fromarray(label * 255).convert("1").save(tmp_path / "b.png")
    np.testing.assert_array_equal(readers.read_label(tmp_path / "b.png", 2).array, label)
    Image.fromarray(files.fundus(0)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="colour picture"):
        readers.read_label(tmp_path / "c.png", 2)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), suffix=st.sampled_from([".nii", ".nii.gz", ".png", ".dcm"]))
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, data, suffix):
    """Any file with a few bytes changed or cut either reads or raises `UserError`."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        Image.fromarray(files.fundus(0)).save(path)
    elif suffix == ".dcm":
        files.write_multiframe(path, VALUES)
    else:
        files.write_nifti(path, VALUES)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 3000)) % len(content)] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: round(len(content) * data.draw(st.floats(0, 1)))])
    rank = 2 if suffix == ".png" else 3
    for function in (readers.read_header, readers.read_image):
        try:
            function((path,), rank)
        except UserError as error:
            message = str(error)
        else:
            message = str(tmp_path)
        assert str(tmp_path) in message
