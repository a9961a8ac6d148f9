"""NIfTI, with nibabel as the oracle."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from ssl3d.data import geometry, readers
from tests.support import source_files as files
from tests.support.scans import AFFINE, VALUES, read


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
