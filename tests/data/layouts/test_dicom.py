"""Trees of DICOM series."""

from __future__ import annotations

import numpy as np

from tests.support import source_files as files
from tests.support.listings import listed


def test_series_and_patients(tmp_path):
    folder = files.write_dicom(tmp_path)
    (folder / "README.txt").write_text("no image")
    listing = listed("dicom", folder)
    assert {case.id: case.subject for case in listing.cases} == {
        "a-series1": "P1",
        "b-c-series2": "P2",
        "d-volume.dcm": "P2",
    }
    assert listing.modalities == ("CT",)
    assert listing.splits_by == "subject"
    assert "README.txt" in listing.notes[0].reason


def test_two_series_in_one_folder_and_other_modalities(tmp_path):
    folder = files.write_dicom(tmp_path)
    files.write_series(folder / "a/series1", files.scan(9), order=np.random.default_rng(0))
    extra = files.write_series(folder / "a/series1/more", files.scan(9))
    for path in extra.iterdir():
        path.rename(folder / "a/series1" / f"more_{path.name}")
    files.edit_dicom(folder / "d/volume.dcm", Modality="PT")
    (folder / "b/broken.dcm").write_bytes(b"\0" * 400)
    problems = {p.name: p.reason for p in listed("dicom", folder).problems}
    assert "2 series in one folder" in problems[str(folder / "a/series1")]
    assert "modality PT" in problems[str(folder / "d/volume.dcm")]
    assert "not a DICOM file" in problems[str(folder / "b/broken.dcm")]
