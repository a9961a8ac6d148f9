"""BraTS of 2018 to 2023."""

from __future__ import annotations

from pathlib import Path

from tests.support import source_files as files
from tests.support.listings import listed


def test_the_names_of_every_year(tmp_path):
    folder = files.write_brats(tmp_path)
    listing = listed("brats", folder)
    assert listing.modalities == ("T1ce", "FLAIR", "T1", "T2")
    classes = listing.classes_from({})
    assert classes[3] == classes[4] == "enhancing tumour"
    assert {case.id: case.subject for case in listing.cases} == {
        "Brats18_TCIA01_231_1": "Brats18_TCIA01_231",
        "BraTS20_Training_001": "BraTS20_Training_001",
        "BraTS2021_00002": "BraTS2021_00002",
        "BraTS-GLI-00003-000": "BraTS-GLI-00003",
    }
    for case in listing.cases:
        names = [paths[0].name for paths in case.images]
        expected = [name.format(case.id) for name in files.BRATS_SPELLINGS[case.id]]
        assert names == expected
        assert "seg" in case.label.name


def test_case_355_of_2020_has_another_label_name(tmp_path):
    folder = files.write_brats(tmp_path)
    place = folder / "BraTS20_Training_001"
    label = place / "BraTS20_Training_001_seg.nii.gz"
    label.rename(place / "W39_1998.09.19_Segm.nii.gz")
    case = next(c for c in listed("brats", folder).cases if c.id == place.name)
    assert case.label.name == "W39_1998.09.19_Segm.nii.gz"


def test_missing_and_duplicate_modalities(tmp_path):
    folder = files.write_brats(tmp_path)
    flair = folder / "BraTS20_Training_001/BraTS20_Training_001_flair.nii"
    flair.rename(folder / "BraTS2021_00002/other_flair.nii")
    problems = {p.name.rsplit("/", 1)[-1]: p.reason for p in listed("brats", folder).problems}
    assert "missing modality FLAIR" in problems["BraTS20_Training_001"]
    assert "the same modality" in problems["BraTS2021_00002"]


def test_the_current_folder(tmp_path, monkeypatch):
    files.write_brats(tmp_path)
    monkeypatch.chdir(tmp_path / "BraTS2021_00002")
    (case,) = listed("brats", Path(".")).cases
    assert case.id == "BraTS2021_00002"
