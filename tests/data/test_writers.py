"""Predictions as files: one geometry, whatever the input was."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ssl3d.data import store, writers
from ssl3d.data.layouts.listing import SourceCase

SHAPE = (64, 60, 20)
STRAIGHT = np.diag([0.5, 0.5, 2.5, 1.0])
TILTED = STRAIGHT.copy()
TILTED[1, 2] = 2.5 * np.tan(np.radians(18.5))
OBLIQUE = STRAIGHT.copy()
OBLIQUE[:2, :2] = 0.5 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])


def written(folder, affine, source="IM0001"):
    """The prediction for a case with this affine, and a source file of this name."""
    rows = tuple(map(tuple, affine))
    extra = {"source_shape": list(SHAPE), "source_affine": [list(row) for row in rows]}
    case = store.Case("c", "c", "test", SHAPE, 1, (0.5, 0.5, 2.5), rows, extra=extra)
    label = np.zeros(SHAPE, np.uint8)
    label[10:20, 10:20, 5:9] = 1
    images = ((folder / source,),)
    writers.write_on_source_grid(folder, SourceCase("c", "c", images), case, [label], np.uint8)
    return nib.load(folder / "c.nii.gz")


def forms(picture):
    """Every transform that the header claims to have."""
    header = picture.header
    found = header.get_sform(coded=True), header.get_qform(coded=True)
    return [form for form, code in found if code]


@pytest.mark.parametrize("affine", [STRAIGHT, TILTED, OBLIQUE])
def test_a_prediction_has_one_geometry(tmp_path, affine):
    picture = written(tmp_path, affine)
    assert forms(picture)
    for form in forms(picture):
        np.testing.assert_allclose(form, affine, atol=1e-3)
    np.testing.assert_allclose(picture.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0))
    if affine is TILTED:  # a qform holds no shear
        assert int(picture.header["qform_code"]) == 0
    else:
        image = sitk.ReadImage(str(tmp_path / "c.nii.gz"))
        direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        np.testing.assert_allclose(np.diag([-1, -1, 1]) @ direction, affine[:3, :3], atol=1e-3)


def test_the_header_of_the_input_is_kept_where_it_is_sound(tmp_path):
    picture = nib.Nifti1Image(np.zeros(SHAPE, np.int16), OBLIQUE)
    picture.header["descrip"] = b"a scanner"
    picture.set_sform(OBLIQUE, "mni")
    nib.save(picture, tmp_path / "scan.nii.gz")
    found = written(tmp_path, OBLIQUE, "scan.nii.gz").header
    assert bytes(found["descrip"]).startswith(b"a scanner")
    assert int(found["sform_code"]) == 4


@pytest.mark.parametrize("change", ["sform of zeros", "qform elsewhere"])
def test_a_broken_header_is_not_handed_on(tmp_path, change):
    picture = nib.Nifti1Image(np.zeros(SHAPE, np.int16), OBLIQUE)
    picture.set_qform(OBLIQUE, 1)
    picture.set_sform(OBLIQUE, 1)
    nib.save(picture, tmp_path / "scan.nii")
    data = bytearray((tmp_path / "scan.nii").read_bytes())
    if change == "sform of zeros":
        data[280:328] = bytes(48)
    elif change == "qform elsewhere":
        data[268:272] = np.float32(99).tobytes()
    (tmp_path / "scan.nii").write_bytes(data)
    found = written(tmp_path, OBLIQUE, "scan.nii")
    assert found.header.get_xyzt_units()[0] == "mm"
    assert len(forms(found)) == 2
    for form in forms(found):
        np.testing.assert_allclose(form, OBLIQUE, atol=1e-3)
