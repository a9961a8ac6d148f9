"""Pairs of header and data, and MGH, with nibabel as the oracle."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from ssl3d.data import readers
from ssl3d.errors import UserError
from tests.support.scans import AFFINE, VALUES, read

KINDS = {
    "nifti.img": nib.Nifti1Pair,
    "nifti2.img": nib.Nifti2Pair,
    "analyze.img": nib.AnalyzeImage,
    "a.mgh": nib.MGHImage,
    "b.mgz": nib.MGHImage,
}


def written(folder, name):
    kind = KINDS[name]
    affine = np.diag([-0.7, 0.8, 2.5, 1.0]) if kind is nib.AnalyzeImage else AFFINE
    path = folder / name
    nib.save(kind(VALUES.astype(np.float32), affine), path)
    return path.with_suffix(".hdr") if path.suffix == ".img" else path


@pytest.mark.parametrize("name", KINDS)
def test_the_file_is_what_nibabel_reads(tmp_path, name):
    path = written(tmp_path, name)
    theirs = nib.load(path)
    volume = read(path)
    np.testing.assert_array_equal(volume.array[..., 0], theirs.get_fdata())
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-6)
    header = readers.read_header((path,), 3)
    assert header.grid.shape == VALUES.shape
    notes = readers.read_notes((path,))
    assert len(notes) == ("analyze" in name)
    assert "no orientation" in "".join(notes) or not notes


def test_a_pair_is_two_files_of_one_case(tmp_path):
    path = written(tmp_path, "nifti.img")
    data = path.with_suffix(".img")
    assert readers.companions(path) == (data,)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"nifti.img: truncated"):
        read(path)
    data.unlink()
    with pytest.raises(UserError, match=r"its data, nifti.img, are missing"):
        read(path)


@pytest.mark.parametrize("name", ["nifti.img", "analyze.img", "a.mgh", "b.mgz"])
def test_damaged_files_are_one_line(tmp_path, name):
    path = written(tmp_path, name)
    data = path.read_bytes()
    for damaged in (b"", data[:40], bytes(len(data)), data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=path.name) as error:
            read(path)
        assert "\n" not in str(error.value)
