"""Ranks, labels and damaged bytes in every format."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl3d.data import readers
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.scans import VALUES, read


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
