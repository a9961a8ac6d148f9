import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ssl3d.data.readers import dicom_files
from tests.support import source_files as files
from tests.support.scans import AFFINE, VALUES, read


def test_deflated_files_read_as_others(tmp_path):
    whole = files.write_series(tmp_path / "whole", VALUES, AFFINE)
    deflated = files.write_series(tmp_path / "deflated", VALUES, AFFINE)
    for path in deflated.iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read(deflated).array, read(whole).array)
    np.testing.assert_array_equal(read(deflated).affine, read(whole).affine)


def test_a_header_alone_has_no_pixels(tmp_path):
    for path in files.write_series(tmp_path / "s", VALUES[:, :, :1]).iterdir():
        assert "PixelData" not in dicom_files.read(path, voxels=False)
        assert dicom_files.read(path, voxels=True) == pydicom.dcmread(path)


def test_no_more_is_asked_of_a_file_than_it_has(tmp_path):
    """Python would allocate the 4 GB that the element promises."""
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(range(100)))
    with dicom_files._Bounded(path.open("rb").detach()) as file:
        file.seek(90)
        assert file.read(4 << 60) == bytes(range(90, 100))
        assert file.read() == b""
