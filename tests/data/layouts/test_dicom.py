"""Trees of DICOM series."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ssl3d.errors import UserError
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


def spread(folder, parts):
    """Moves the files of a series into folders of its own, as exports to discs do."""
    for number, path in enumerate(sorted(folder.iterdir())):
        place = folder / f"D{number % parts}" / path.name
        place.parent.mkdir(exist_ok=True)
        path.rename(place)


def test_a_series_in_several_folders_is_one_case(tmp_path):
    folder = files.write_dicom(tmp_path)
    spread(folder / "a/series1", 3)
    listing = listed("dicom", folder)
    assert not listing.problems
    (case,) = (case for case in listing.cases if case.subject == "P1")
    assert case.id == "a-series1"
    assert len(case.files) == files.SHAPE[2]


def test_the_same_uid_of_two_patients_is_two_series(tmp_path):
    for i in range(3):
        files.write_series(tmp_path / f"p{i}", files.scan(i), patient=f"P{i}", series="1.2.3")
    listing = listed("dicom", tmp_path)
    assert [case.id for case in listing.cases] == ["p0", "p1", "p2"]


def test_copies_of_files_are_left_out(tmp_path):
    folder = files.write_dicom(tmp_path)
    shutil.copytree(folder / "a/series1", folder / "backup")
    listing = listed("dicom", folder)
    assert not listing.problems
    (case,) = (case for case in listing.cases if case.subject == "P1")
    assert len(case.files) == files.SHAPE[2]
    assert sum("the same image" in note.reason for note in listing.notes) == files.SHAPE[2]


def test_slices_that_share_one_uid_are_no_copies(tmp_path):
    folder = files.write_dicom(tmp_path)
    for path in (folder / "a/series1").iterdir():
        files.edit_dicom(path, SOPInstanceUID="1.2.3.4")
    (case,) = (case for case in listed("dicom", folder).cases if case.subject == "P1")
    assert len(case.files) == files.SHAPE[2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"Modality": "SEG"}, "a segmentation"),
        ({"Modality": "RTDOSE"}, "a dose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "a segmentation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"}, "a dose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
    ],
)
def test_objects_that_are_no_images_are_left_out(tmp_path, change, what):
    folder = files.write_dicom(tmp_path)
    for name in ("A", "c/B", "z"):  # as many as there are images
        for path in files.write_series(folder / name, files.scan(7)).iterdir():
            files.edit_dicom(path, **change)
    listing = listed("dicom", folder)
    assert not listing.problems
    assert listing.modalities == ("CT",)
    assert len(listing.cases) == 3
    assert any(f"files are {what}" in note.reason for note in listing.notes)


def test_the_modality_is_the_users_else_the_most_frequent(tmp_path):
    folder = files.write_dicom(tmp_path)
    for i in range(2):
        for path in files.write_series(folder / f"A{i}", files.scan(i + 5)).iterdir():
            files.edit_dicom(path, Modality="MR")
    assert len(listed("dicom", folder).problems) == 2
    for options in ({"kind": "MR"}, {"modalities": ("MR",)}):
        listing = listed("dicom", folder, **options)
        assert [case.id for case in listing.cases] == ["A0", "A1"]
        assert not listing.problems
        assert any(note.reason == "left out: modality CT" for note in listing.notes)
    shutil.rmtree(folder / "d")
    with pytest.raises(UserError, match="2 series are CT and as many MR; choose"):
        listed("dicom", folder)
