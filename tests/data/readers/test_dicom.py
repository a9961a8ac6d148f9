"""DICOM, against NIfTI and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from ssl3d.data import geometry, readers, store
from ssl3d.data.layouts import list_cases
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation.case import PreparationSettings, prepare_case
from ssl3d.data.preparation.recipes import RECIPES
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.scans import AFFINE, VALUES, read

# GDCM's names; the first two are what scanners and archives write most.
COMPRESSIONS = [
    None,
    "JPEGLosslessProcess14_1",
    "JPEG2000Lossless",
    "JPEGLSLossless",
    "RLELossless",
]


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
    settings.output.mkdir()
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


def moved(folder, place):
    """Writes other positions of the slices: `place` says where slice k lies, in mm."""
    for k, path in enumerate(sorted(folder.iterdir())):
        files.edit_dicom(path, ImagePositionPatient=[-12.345678, 0.25, place(k)])
    return folder


@pytest.mark.parametrize(("step", "decimals"), [(0.625, 1), (1.25, 1), (0.9766, 2), (2.5, 0)])
def test_rounded_positions_are_of_one_step(tmp_path, step, decimals):
    values = np.random.default_rng(0).integers(0, 500, (12, 10, 30)).astype(np.int16)
    folder = files.write_series(tmp_path / "s", values)
    volume = read(moved(folder, lambda k: round(step * k, decimals or None)))
    assert volume.array.shape[2] == 30
    spacing = geometry.spacing_of(volume.affine)
    assert spacing[2] == pytest.approx(step, abs=10**-decimals / 29)
    assert readers.read_notes(sorted(folder.iterdir())) == []
    sorted(folder.iterdir())[14].unlink()
    with pytest.raises(UserError, match=r"slices are .* mm apart, but"):
        read(folder)


@pytest.mark.parametrize("between", [(), (3.75,)])
def test_two_slabs_are_resampled_to_the_finer_step(tmp_path, between):
    places = np.cumsum([0.0, *[2.5] * 8, *between, *[5.0] * 6])
    values = np.broadcast_to(10 * places, (12, 10, len(places))).astype(np.int16)
    folder = moved(files.write_series(tmp_path / "s", values), lambda k: float(places[k]))
    volume = read(folder)
    count = round(places[-1] / 2.5) + 1
    assert volume.array.shape == (12, 10, count, 1)
    even = np.linspace(0, 10 * places[-1], count)
    np.testing.assert_allclose(volume.array[0, 0, :, 0], even, atol=1)
    assert geometry.spacing_of(volume.affine)[2] == pytest.approx(places[-1] / (count - 1))
    (note,) = readers.read_notes(sorted(folder.iterdir()))
    assert note == "slices are 2.5 and 5 mm apart; resampled to 2.5 mm"
    header = readers.read_header(tuple(sorted(folder.iterdir())), 3)
    assert header.grid.shape == volume.array.shape[:3]


def test_uneven_slices_are_not_called_incomplete(tmp_path):
    folder = files.write_series(tmp_path / "s", files.scan(0))
    moved(folder, lambda k: float(k + 0.3 * (k % 3 == 1)))
    with pytest.raises(UserError, match=r"not evenly spaced.*dcm2niix"):
        read(folder)


def without_preamble(path, meta=False):
    data = path.read_bytes()
    length = 132 + 12 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[132:] if meta else data[length:])


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_files_without_preamble_are_read(tmp_path, meta, ending):
    expected = read(files.write_series(tmp_path / "whole", VALUES, AFFINE))
    folder = files.write_series(tmp_path / "s", VALUES, AFFINE)
    for path in list(folder.iterdir()):
        path = path.rename(path.with_suffix(ending))
        without_preamble(path, meta)
    volume = read(folder)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    (case,) = list_cases("dicom", folder).cases
    assert len(case.files) == VALUES.shape[2]


@pytest.mark.parametrize(
    "data", [b"\x08\0" * 100, b"\x02\0\0\0" + b"\xff" * 200, b"\x08\0\x05\0CS"]
)
def test_other_files_are_not_taken_for_dicom(tmp_path, data):
    files.write_series(tmp_path / "s", VALUES, AFFINE)
    (tmp_path / "s/other").write_bytes(data)
    listing = list_cases("dicom", tmp_path)
    assert len(listing.cases) == 1
    assert len(listing.cases[0].files) == VALUES.shape[2]


def test_the_parts_of_a_concatenation_are_one_volume(tmp_path):
    whole = read_file(files.write_multiframe(tmp_path / "whole.dcm", VALUES, AFFINE))
    half = VALUES.shape[2] // 2
    later = AFFINE.copy()
    later[:3, 3] += half * AFFINE[:3, 2]
    parts = {"a": (VALUES[:, :, :half], AFFINE), "b": (VALUES[:, :, half:], later)}
    for name, (values, affine) in parts.items():
        path = files.write_multiframe(tmp_path / f"parts/{name}.dcm", values, affine)
        files.edit_dicom(path, SeriesInstanceUID="1.2.3", ConcatenationUID="1.2.4")
    (case,) = list_cases("dicom", tmp_path / "parts").cases
    volume = readers.read_image(case.images[0], 3)
    np.testing.assert_array_equal(volume.array, whole.array)
    np.testing.assert_allclose(volume.affine, whole.affine, atol=1e-6)


def read_file(path):
    return readers.read_image((path,), 3)


def test_implicit_files_without_preamble_are_read(tmp_path):
    expected = read(files.write_series(tmp_path / "whole", VALUES, AFFINE))
    folder = files.write_series(tmp_path / "s", VALUES, AFFINE)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        del header.file_meta
        header.preamble = None
        pydicom.dcmwrite(
            path, header, implicit_vr=True, little_endian=True, enforce_file_format=False
        )
    np.testing.assert_array_equal(read(folder).array, expected.array)
