"""NRRD and MetaImage, with SimpleITK as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from ssl3d.data import geometry, readers
from tests.support.scans import AFFINE, VALUES, read


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
