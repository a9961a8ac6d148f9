"""Valid files of many kinds pass, and read as SimpleITK reads them; hostile ones are in
tests/data/preparation/test_hostile_input.py."""

import gzip
import os
import re
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from ssl3d.data.readers import itk, itk_headers
from ssl3d.errors import UserError
from tests.support.scans import VALUES

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_what_itk_writes_is_read(tmp_path, name, compressed, dtype):
    array = VALUES.clip(-100, 100).astype(dtype)
    file = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(array.transpose(2, 1, 0)), str(file), compressed)
    found, _ = itk.read(file, 3)
    np.testing.assert_array_equal(found[..., 0], array.astype(np.float32))


@pytest.mark.parametrize("change", ["cut", "flipped", "more"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_damaged_compressed_data_are_no_image(tmp_path, name, change):
    """ITK would return what was in the memory before, in place of voxels that it cannot inflate."""
    file = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.transpose(2, 1, 0)), str(file), True)
    content = file.read_bytes()
    start = content.index(b"LOCAL\n") + 6 if name == "a.mha" else content.index(b"\n\n") + 2
    head = re.sub(rb"CompressedDataSize = .*\n", b"", content[:start])
    data = bytearray(content[start:])
    if change == "cut":
        data = data[: len(data) * 3 // 4]
    elif change == "flipped":
        data[len(data) // 2] ^= 8
    else:
        data = zlib.compress(b"\0" * (2 * VALUES.nbytes))
        data = gzip.compress(b"\0" * (2 * VALUES.nbytes)) if name == "a.nrrd" else data
    file.write_bytes(head + data)
    with pytest.raises(UserError, match=rf"{name}: (inflates to|damaged)"):
        itk.read(file, 3)


def test_values_as_text(tmp_path):
    words = " ".join(map(str, VALUES[:5, :5, :5].ravel(order="F"))).encode()
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0001\n# a comment\ntype: int16\ndimension: 3\nsizes: 5 5 5\nencoding: ascii\n"
        b"a note:=" + b"x" * 5000 + b"\n\n" + words
    )
    found, _ = itk.read(tmp_path / "a.nrrd", 3)
    np.testing.assert_array_equal(found[..., 0], VALUES[:5, :5, :5])


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_detached_data_must_be_there_and_whole(tmp_path, name):
    file = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.transpose(2, 1, 0)), str(file))
    (data,) = (path for path in tmp_path.iterdir() if path != file)
    os.truncate(data, 100)
    with pytest.raises(UserError, match=rf"{name}: .*100 bytes of data where the header promises"):
        itk_headers.check(file)
    data.unlink()
    with pytest.raises(UserError, match="no such file"):
        itk_headers.check(file)
