"""DICOM, against NIfTI and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from ssl3d.data import geometry, readers, store
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
