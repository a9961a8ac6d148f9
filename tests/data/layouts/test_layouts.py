"""Each layout lists what is there, and names what is missing or out of place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl3d.data.layouts import LAYOUTS, list_cases
from ssl3d.data.layouts.listing import Options, id_of
from ssl3d.errors import UserError
from tests.support import source_files as files


def listed(layout, folder, **options):
    return list_cases(layout, folder, Options(**options))


def one_problem(listing, *words):
    """The only problem, which names everything in `words`."""
    (problem,) = listing.problems
    text = f"{problem.name}: {problem.reason}"
    for word in words:
        assert str(word) in text
    return problem


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_lists_its_cases_in_one_order(layout, tmp_path):
    folder = files.WRITERS[layout](tmp_path / "source")
    first, second = listed(layout, folder), listed(layout, folder)
    assert first == second
    assert first.problems == ()
    assert [case.id for case in first.cases] == sorted(case.id for case in first.cases)
    assert len(first.cases) >= 3
    assert all(path.exists() for case in first.cases for path in case.files)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_empty_or_missing_folder_is_one_line(layout, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        listed(layout, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        listed(layout, tmp_path / "empty")


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"msd", "nnunet"}))
def test_a_link_out_of_the_source_is_a_problem(layout, tmp_path):
    folder = files.WRITERS[layout](tmp_path / "source")
    inside = next(path for case in listed(layout, folder).cases for path in case.files)
    outside = tmp_path / inside.name
    inside.rename(outside)
    inside.symlink_to(outside)
    problems = listed(layout, folder).problems
    assert any(str(inside) in p.name and "leaves the source" in p.reason for p in problems)


def test_msd(tmp_path):
    folder = files.write_msd(tmp_path)
    (folder / "imagesTr/._case_00.nii.gz").write_bytes(b"left by macOS")
    listing = listed("msd", folder)
    assert (listing.name, listing.modalities) == ("Hippocampus", ("MRI",))
    assert listing.classes == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert listing.splits_by == "case"
    assert [case.label is None for case in listing.cases] == [False] * 6 + [True]
    assert not listing.notes


def test_msd_entries_that_leave_or_do_not_exist(tmp_path):
    folder = files.write_msd(tmp_path / "source")
    document = json.loads((folder / "dataset.json").read_text())
    files.write_nifti(tmp_path / "secret.nii.gz", files.scan(0))
    document["training"][0]["image"] = "../secret.nii.gz"
    document["training"][1]["label"] = "./labelsTr/gone.nii.gz"
    del document["training"][2]["image"]
    document["training"].append(dict(document["training"][3]))
    (folder / "dataset.json").write_text(json.dumps(document))
    listing = listed("msd", folder)
    text = "\n".join(f"{p.name}: {p.reason}" for p in listing.problems)
    assert "secret.nii.gz: leaves the source" in text
    assert "gone.nii.gz: no such file" in text
    assert "names no image" in text
    assert "case_03: duplicate id of 2 cases" in text
    assert [case.id for case in listing.cases] == ["case_04", "case_05", "case_06"]
    assert any("case_00.nii.gz" in note.name for note in listing.notes)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda d: d.pop("labels"), '"labels" is missing'),
        (lambda d: d.update(labels=["a"]), '"labels" is missing or not like'),
        (lambda d: d.update(modality=None), '"modality" is missing'),
        (lambda d: d.update(training="all"), '"training" is not a list'),
    ],
)
def test_msd_with_a_wrong_manifest(tmp_path, edit, what):
    folder = files.write_msd(tmp_path)
    document = json.loads((folder / "dataset.json").read_text())
    edit(document)
    (folder / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=what):
        listed("msd", folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        listed("msd", folder)


def test_nnunet(tmp_path):
    folder = files.write_nnunet(tmp_path)
    listing = listed("nnunet", folder)
    assert listing.modalities == ("T1", "T2")
    assert listing.classes == {0: "background", 1: "body", 2: "core"}
    names = [paths[0].name for paths in listing.cases[0].images]
    assert names == ["c0_0000.nii.gz", "c0_0001.nii.gz"]
    (folder / "imagesTr/c0_0001.nii.gz").unlink()
    one_problem(listed("nnunet", folder), "c0_0001.nii.gz", "missing channel (T2)")


def test_nnunet_labels_and_images_that_do_not_meet(tmp_path):
    folder = files.write_nnunet(tmp_path)
    (folder / "labelsTr/c1.nii.gz").rename(folder / "labelsTr/c9.nii.gz")
    listing = listed("nnunet", folder)
    one_problem(listing, "c9.nii.gz", "a label without an image")
    assert [note.name for note in listing.notes] == ["c1"]
    files.write_nifti(folder / "imagesTr/plain.nii.gz", files.scan(0))
    files.write_nifti(folder / "imagesTr/c0_0002.nii.gz", files.scan(0))
    reasons = " ".join(p.reason for p in listed("nnunet", folder).problems)
    assert "channel number like _0000" in reasons
    assert "names only 2 channels" in reasons


def test_brats_of_every_year(tmp_path):
    folder = files.write_brats(tmp_path)
    listing = listed("brats", folder)
    assert listing.modalities == ("T1ce", "FLAIR", "T1", "T2")
    assert listing.classes[3] == listing.classes[4] == "enhancing tumour"
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


def test_brats_2020_case_355_has_another_label_name(tmp_path):
    folder = files.write_brats(tmp_path)
    place = folder / "BraTS20_Training_001"
    label = place / "BraTS20_Training_001_seg.nii.gz"
    label.rename(place / "W39_1998.09.19_Segm.nii.gz")
    case = next(c for c in listed("brats", folder).cases if c.id == place.name)
    assert case.label.name == "W39_1998.09.19_Segm.nii.gz"


def test_brats_missing_and_double_modalities(tmp_path):
    folder = files.write_brats(tmp_path)
    flair = folder / "BraTS20_Training_001/BraTS20_Training_001_flair.nii"
    flair.rename(folder / "BraTS2021_00002/other_flair.nii")
    problems = {p.name.rsplit("/", 1)[-1]: p.reason for p in listed("brats", folder).problems}
    assert "missing modality FLAIR" in problems["BraTS20_Training_001"]
    assert "the same modality" in problems["BraTS2021_00002"]


def test_ukb(tmp_path):
    folder = files.write_ukb(tmp_path)
    listing = listed("ukb", folder)
    assert listing.modalities == ("T1", "T2-FLAIR")
    assert {case.id: case.subject for case in listing.cases} == {
        "1000000_2_0": "1000000",
        "1000000_3_0": "1000000",
        "1000001_2_0": "1000001",
        "1000002_2_0": "1000002",
    }
    assert all(case.mask.name == "T1_brain_mask.nii.gz" for case in listing.cases)
    brain = folder / "1000001_20252_2_0/T1/T1_unbiased_brain.nii.gz"
    files.write_nifti(brain, files.scan(3))
    (folder / "1000002_20253_2_0/T2_FLAIR/T2_FLAIR.nii.gz").unlink()
    listing = listed("ukb", folder)
    assert next(c for c in listing.cases if c.subject == "1000001").images[0] == (brain,)
    one_problem(listing, "1000002_2_0", "missing modality T2-FLAIR")


def test_ukb_with_one_folder_per_subject(tmp_path):
    for subject in ("1000001", "1000002_2_0"):
        files.write_nifti(tmp_path / subject / "T1/T1_brain.nii.gz", files.scan(0))
        files.write_nifti(tmp_path / subject / "T2_FLAIR/T2_FLAIR_brain.nii.gz", files.scan(1))
    listing = listed("ukb", tmp_path)
    assert [(c.id, c.subject) for c in listing.cases] == [
        ("1000001", "1000001"),
        ("1000002_2_0", "1000002"),
    ]


def test_bids(tmp_path):
    folder = files.write_bids(tmp_path)
    listing = listed("bids", folder)
    assert listing.modalities == ("FLAIR", "T1w")
    assert listing.classes == {0: "background", 1: "lesion", 2: "core"}
    assert len(listing.cases) == 6
    assert {case.subject for case in listing.cases} == {"sub-0", "sub-1", "sub-2"}
    assert listing.cases[0].label.name == "sub-0_ses-01_space-T1w_dseg.nii.gz"
    assert listed("bids", folder, modalities=("T1w",)).modalities == ("T1w",)


def test_bids_missing_modalities_stray_and_double_labels(tmp_path):
    folder = files.write_bids(tmp_path)
    (folder / "sub-0/ses-01/anat/sub-0_ses-01_FLAIR.nii.gz").unlink()
    labels = folder / "derivatives/lesions"
    files.write_nifti(labels / "sub-9/anat/sub-9_dseg.nii.gz", files.segmentation())
    files.write_nifti(
        folder / "derivatives/other/sub-1/sub-1_ses-01_dseg.nii.gz", files.segmentation()
    )
    listing = listed("bids", folder)
    problems = {p.name.rsplit("/", 1)[-1]: p.reason for p in listing.problems}
    assert "missing modality FLAIR" in problems["sub-0_ses-01"]
    assert "several labels" in problems["sub-1_ses-01"]
    assert "a label without an image" in problems["sub-9_dseg.nii.gz"]
    chosen = listed("bids", folder, labels=labels)
    assert len(chosen.cases) == 5


def test_folder(tmp_path):
    folder = files.write_folder(tmp_path / "scans")
    listing = listed("folder", folder)
    assert [c.id for c in listing.cases] == [
        "site0-scan0",
        "site0-scan2",
        "site1-scan1",
        "site1-scan3",
    ]
    assert all(case.label for case in listing.cases)
    images = listed("folder", folder / "images")
    assert all(case.label is None for case in images.cases)
    assert images.notes == ()
    outside = listed("folder", folder / "images", labels=folder / "labels")
    assert all(case.label for case in outside.cases)


@pytest.mark.parametrize("relative", ["source", "labels"])
def test_labels_inside_the_source_are_no_images(tmp_path, monkeypatch, relative):
    files.write_folder(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "images/truth")
    monkeypatch.chdir(tmp_path)
    here, full = Path("images"), tmp_path / "images"
    source, labels = (here, full) if relative == "source" else (full, here)
    listing = listed("folder", source, labels=labels / "truth")
    assert [case.label.name for case in listing.cases] == [
        f"scan{i}_seg.nii.gz" for i in (0, 2, 1, 3)
    ]
    assert not listing.problems


def test_bids_labels_elsewhere(tmp_path):
    source = files.write_bids(tmp_path / "source")
    (source / "derivatives").rename(tmp_path / "truth")
    listing = listed("bids", source, labels=tmp_path / "truth")
    assert all(case.label for case in listing.cases)
    assert not listing.problems
    assert listing.classes == {0: "background", 1: "lesion", 2: "core"}
    with pytest.raises(UserError, match="gone: no such folder"):
        listed("bids", source, labels=tmp_path / "gone")


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    files.write_brats(tmp_path)
    monkeypatch.chdir(tmp_path / "BraTS2021_00002")
    (case,) = listed("brats", Path(".")).cases
    assert case.id == "BraTS2021_00002"


def test_a_manifest_with_a_byte_order_mark(tmp_path):
    file = files.write_msd(tmp_path) / "dataset.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(listed("msd", tmp_path).cases) == 7


def test_folder_labels_and_images_that_do_not_meet(tmp_path):
    folder = files.write_folder(tmp_path)
    (folder / "labels/site0/scan0_seg.nii.gz").rename(folder / "labels/scan9.nii.gz")
    listing = listed("folder", folder)
    one_problem(listing, "scan9.nii.gz", "a label without an image")
    assert [note.name for note in listing.notes] == [str(folder / "images/site0/scan0.nii.gz")]


def test_folder_does_not_mix_pictures_and_volumes(tmp_path):
    folder = files.write_folder(tmp_path)
    Image.fromarray(files.fundus(0)).save(folder / "images/x.png")
    with pytest.raises(UserError, match=r"volumes \(scan0.nii.gz\) and pictures \(x.png\)"):
        listed("folder", folder)


def test_odd_names_become_ids_and_collisions_are_found(tmp_path):
    files.write_nifti(tmp_path / "a b (1)/scan.nii.gz", files.scan(0))
    files.write_nifti(tmp_path / "a/b.nii.gz", files.scan(1))
    files.write_nifti(tmp_path / "a-b.nii.gz", files.scan(2))
    listing = listed("folder", tmp_path)
    assert [case.id for case in listing.cases] == ["a_b__1_-scan"]
    one_problem(listing, "a-b", "duplicate id of 2 cases", "a/b.nii.gz")
    assert id_of("../x.nii") == "x"


def test_subjects_from_a_pattern(tmp_path):
    folder = files.write_folder(tmp_path)
    listing = listed("folder", folder, subject_pattern=r"^(site\d)")
    assert {case.subject for case in listing.cases} == {"site0", "site1"}
    assert listing.splits_by == "subject"
    listing = listed("folder", folder, subject_pattern=r"^(site0)")
    assert len(listing.problems) == 2
    for bad, what in (("(", "not a regular expression"), ("site", "parentheses")):
        with pytest.raises(UserError, match=what):
            listed("folder", folder, subject_pattern=bad)


def test_dicom(tmp_path):
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


def test_dicom_two_series_in_one_folder_and_other_modalities(tmp_path):
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


def test_images(tmp_path):
    folder = files.write_images(tmp_path)
    (folder / "test.csv").write_text("id_code\nx\n")
    Image.fromarray(files.fundus(77)).save(folder / "plain.png")
    listing = listed("images", folder)
    assert [case.grade for case in listing.cases] == [0, 1, 2, 3, 4, 0, None]
    assert listing.classes[4] == "proliferative DR"
    assert listing.splits_by == "case"
    assert [note.name for note in listing.notes] == [str(folder / "plain.png")]


def test_fellow_eyes_are_one_subject(tmp_path):
    for name in ("10_left", "10_right", "13_left"):
        Image.fromarray(files.fundus(len(name))).save(tmp_path / f"{name}.jpeg")
    (tmp_path / "trainLabels.csv").write_text("image,level\n10_left,0\n10_right,1\n13_left,2\n")
    listing = listed("images", tmp_path)
    assert [case.subject for case in listing.cases] == ["10", "10", "13"]
    assert listing.splits_by == "subject"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("gone,0", "line 2: no picture called gone"),
        ("../eye0,0", "'../eye0' is not a plain file name"),
        ("eye0,7", "grade 7 of eye0 is out of range (0 to 4)"),
        ("eye0,mild", "grade 'mild' of eye0 is not a whole number"),
        ("eye0,", "grade '' of eye0 is not a whole number"),
        ("eye0,1\neye0,2", "duplicate id of 2 cases"),
    ],
)
def test_rows_that_are_wrong(tmp_path, rows, what):
    folder = files.write_images(tmp_path)
    (folder / "train.csv").write_text(f"id_code,diagnosis\n{rows}\neye1,1\n")
    (problem,) = listed("images", folder).problems
    assert what in f"{problem.name}: {problem.reason}"


def test_tables_that_are_wrong(tmp_path):
    folder = files.write_images(tmp_path)
    table = folder / "train.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"no CSV.*--csv=FILE"):
        listed("images", folder)
    with pytest.raises(UserError, match="it has a, b"):
        listed("images", folder, csv=table)
    with pytest.raises(UserError, match="no such file"):
        listed("images", folder, csv=folder / "none.csv")
    table.write_text("id_code,diagnosis\n")
    with pytest.raises(UserError, match="no rows"):
        listed("images", folder)
    table.write_bytes(b"id_code,diagnosis\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        listed("images", folder)


def test_links_inside_the_source_and_to_nothing(tmp_path):
    folder = files.write_folder(tmp_path)
    target = folder / "images/site0/scan0.nii.gz"
    (folder / "images/again.nii.gz").symlink_to(target)
    (folder / "images/nothing.nii.gz").symlink_to(folder / "gone.nii.gz")
    os.symlink(folder / "images/loop.nii.gz", folder / "images/loop.nii.gz")
    listing = listed("folder", folder)
    assert "again" in [case.id for case in listing.cases]
    reasons = {p.name.rsplit("/", 1)[-1]: p.reason for p in listing.problems}
    assert "broken link" in reasons["nothing.nii.gz"]
    assert "link" in reasons["loop.nii.gz"]
