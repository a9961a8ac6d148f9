import gzip
import io

import nibabel as nib
import numpy as np
import pytest

from ssl3d.atomic import atomic_write, leftovers
from ssl3d.data import writers


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "map.nii.gz"

    def broken():
        with atomic_write(path) as partial:
            partial.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        broken()
    assert list(tmp_path.iterdir()) == []
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.uint8)
    array = np.arange(120, dtype=np.uint8).reshape(4, 5, 6)
    with atomic_write(path) as partial:
        writers.write_nifti(partial, [array], header)
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]
    stored = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    np.testing.assert_array_equal(stored.dataobj, array)
    assert io.BytesIO(path.read_bytes()).read(8)[4:] == b"\0\0\0\0"  # no time of day in it


def test_what_a_kill_would_leave_is_found(tmp_path):
    path = tmp_path / "map.nii.gz"
    (tmp_path / "other.map.nii.gz").touch()
    with atomic_write(path) as partial:
        partial.touch()
        assert list(leftovers(path)) == [partial]
    assert list(leftovers(path)) == []
