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


# Odd headers.

GRID = np.diag([1.5, 1.5, 3.0, 1.0])


def with_fields(path, **fields):
    """Writes a file with both transforms set to scanner coordinates, then changes its header."""
    picture = nib.Nifti1Image(VALUES, GRID)
    picture.set_sform(GRID, 1)
    picture.set_qform(GRID, 1)
    nib.save(picture, path)
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        if isinstance(value, dict):
            for index, number in value.items():
                header[name][index] = number
        else:
            header[name] = value
    path.write_bytes(header.binaryblock + bytes(data[348:]))
    return path


ZEROS, NANS = [0, 0, 0, 0], [np.nan] * 4
NO_SFORM = {"sform_code": 0}


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({**NO_SFORM, "pixdim": {0: 0}}, ""),  # take qfac = 1
        ({**NO_SFORM, "pixdim": {0: 7}}, ""),
        ({**NO_SFORM, "pixdim": {1: -1.5}}, ""),
        ({**NO_SFORM, "quatern_b": 1e-4}, ""),
        ({"srow_x": ZEROS, "srow_y": ZEROS, "srow_z": ZEROS}, "the qform is used"),
        ({"srow_x": NANS}, "the qform is used"),
        ({"srow_y": [1.5, 0, 0, 0]}, "the qform is used"),  # two axes coincide
        ({"pixdim": {3: 0}}, "pixdim"),
        ({"pixdim": {2: np.nan}}, "pixdim"),
        ({"quatern_c": np.nan}, "the sform is used"),
        ({"quatern_c": 3.0}, "the sform is used"),
        ({"xyzt_units": 7}, ""),
        ({"vox_offset": np.nan}, ""),
        ({"scl_slope": np.nan, "scl_inter": np.nan}, ""),
        ({"scl_slope": 1, "scl_inter": np.nan}, ""),
        ({"scl_slope": 0, "scl_inter": 5}, ""),
        ({"dim": {0: 5, 4: 0, 5: 0}}, ""),
    ],
)
def test_an_odd_header_is_read_as_the_standard_says(tmp_path, fields, note):
    path = with_fields(tmp_path / "a.nii", **fields)
    volume = read(path)
    np.testing.assert_allclose(volume.affine, GRID, atol=1e-3)
    np.testing.assert_array_equal(volume.array[..., 0], VALUES)
    header = readers.read_header((path,), 3)
    np.testing.assert_array_equal(header.grid.affine, volume.affine)
    notes = readers.read_notes((path,))
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_a_quaternion_that_rounding_made_too_long(tmp_path):
    half_turn = {"quatern_b": 1.0000005, "quatern_c": 0, "quatern_d": 0, **NO_SFORM}
    volume = read(with_fields(tmp_path / "a.nii", **half_turn))
    np.testing.assert_allclose(volume.affine, np.diag([1.5, -1.5, -3, 1]), atol=1e-5)


@pytest.mark.parametrize("qfac", [1, -1])
def test_the_qform_is_nibabels(tmp_path, qfac):
    fields = {"quatern_b": 0.2, "quatern_c": 0.3, "quatern_d": -0.4, "qoffset_x": 7}
    path = with_fields(tmp_path / "a.nii", **fields, **NO_SFORM, pixdim={0: qfac})
    np.testing.assert_allclose(read(path).affine, nib.load(path).affine, atol=1e-5)
    path = with_fields(tmp_path / "b.nii", qform_code=0, **NO_SFORM)
    np.testing.assert_allclose(read(path).affine, nib.load(path).affine, atol=1e-5)
    assert "neither a qform nor an sform" in readers.read_notes((path,))[0]


def test_contradictory_geometry_is_noted(tmp_path):
    unit = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4), strict=False)}
    (note,) = readers.read_notes((with_fields(tmp_path / "a.nii", **unit),))
    assert "sform says voxels of 1 x 1 x 1 mm, pixdim 1.5 x 1.5 x 3 mm" in note
    (note,) = readers.read_notes((with_fields(tmp_path / "b.nii", qoffset_z=30),))
    assert "up to 30 mm apart" in note
    # In a template's coordinates the sform is no longer the scanner's.
    assert not readers.read_notes((with_fields(tmp_path / "c.nii", qoffset_z=30, sform_code=4),))
    assert not readers.read_notes((with_fields(tmp_path / "d.nii"),))


def test_vector_and_singleton_axes(tmp_path):
    vectors = np.stack([VALUES, -VALUES, 2 * VALUES], axis=-1)
    for name, shape in (("a.nii", (1, 3)), ("b.nii", (3, 1)), ("c.nii", (1, 1, 3))):
        path = files.write_nifti(tmp_path / name, vectors.reshape(*VALUES.shape, *shape))
        np.testing.assert_array_equal(read(path).array, vectors.astype(np.float32))
