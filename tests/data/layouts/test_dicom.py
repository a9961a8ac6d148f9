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


def test_series_of_one_folder_are_cases_and_other_modalities_are_not(tmp_path):
    folder = files.write_dicom(tmp_path)
    files.write_series(folder / "a/series1", files.scan(9), order=np.random.default_rng(0))
    extra = files.write_series(folder / "a/series1/more", files.scan(9))
    for path in extra.iterdir():
        path.rename(folder / "a/series1" / f"more_{path.name}")
    files.edit_dicom(folder / "d/volume.dcm", Modality="PT")
    (folder / "b/broken.dcm").write_bytes(b"\0" * 400)
    listing = listed("dicom", folder)
    problems = {p.name: p.reason for p in listing.problems}
    series = [case for case in listing.cases if case.id.startswith("a-series1-1.2.")]
    assert sorted(len(case.files) for case in series) == [files.SHAPE[2]] * 2
    assert "modality PT" in problems[str(folder / "d/volume.dcm")]
    assert "not a DICOM file" in problems[str(folder / "b/broken.dcm")]
