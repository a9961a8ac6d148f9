"""BraTS of 2018 to 2023."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
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


@pytest.mark.parametrize(
    ("case", "values"),
    [
        ("BraTS-GLI-02405-100", (1, 2, 3, 4)),  # 2024: 4 is the resection cavity
        ("BraTS-PED-00003-000", (1, 4)),  # 2024: 4 is oedema
        ("BraTS20_Training_001", (1, 3, 4)),
    ],
)
def test_label_maps_of_another_year_are_refused(tmp_path, case, values):
    folder = files.write_brats(tmp_path / "source")
    old = folder / "BraTS-GLI-00003-000" if "-" in case else folder / "BraTS20_Training_001"
    if old.name != case:
        for path in list(old.iterdir()):
            path.rename(path.with_name(path.name.replace(old.name, case)))
        old = old.rename(old.with_name(case))
    label = files.segmentation()
    label[9, 9, 7 : 7 + len(values)] = values
    (path,) = old.glob("*seg.nii*")
    path.unlink()
    files.write_nifti(path, label)
    options = ["--recipe=brats", "--size=24"]
    with pytest.raises(UserError, match=f"{case}.*value 4.*--classes='0:background"):
        files.prepared(folder, tmp_path / "out", "brats", *options)
    classes = "--classes=0:background,1:necrosis,2:oedema,3:enhancing tumour,4:resection cavity"
    dataset = files.prepared(folder, tmp_path / "out", "brats", *options, classes)
    assert dataset.classes[3:] == ("enhancing tumour", "resection cavity")
    found = next(found for found in dataset.cases if found.id == case)
    assert np.asarray(store.load_label(dataset, found)).max() >= 3


def test_names_of_no_year_where_both_values_are_found(tmp_path):
    """In one map 3, in another 4: one class of two years, or two of 2024."""
    for seed, (name, value) in enumerate((("a", 3), ("b", 4), ("BraTS2021_00002", 4))):
        for number, modality in enumerate(("t1ce", "flair", "t1", "t2")):
            path = tmp_path / name / f"{name}_{modality}.nii.gz"
            files.write_nifti(path, files.scan(10 * seed + number))
        label = files.segmentation()
        label[9, 9, 9] = value
        files.write_nifti(tmp_path / name / f"{name}_seg.nii.gz", label)
    with pytest.raises(UserError, match=r"b_seg.*value 4 where others are 3"):
        files.prepared(tmp_path, tmp_path.with_name("out"), "brats", "--recipe=brats", "--size=24")
    (tmp_path / "b").rename(tmp_path / "BraTS2021_00001")
    dataset = files.prepared(
        tmp_path, tmp_path.with_name("out"), "brats", "--recipe=brats", "--size=24"
    )
    assert "enhancing tumour" in dataset.classes
