"""Ids, subjects and links, whatever the layout."""

from __future__ import annotations

import json
import os
import re

import pytest
from PIL import Image

from ssl3d.data.layouts.listing import id_of
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed, the_problem


def test_paths_become_ids_and_stay_distinct(tmp_path):
    files.write_nifti(tmp_path / "a b (1)/scan.nii.gz", files.scan(0))
    files.write_nifti(tmp_path / "a/b.nii.gz", files.scan(1))
    files.write_nifti(tmp_path / "a-b.nii.gz", files.scan(2))
    listing = listed("folder", tmp_path)
    ids = {case.files[0].relative_to(tmp_path).as_posix(): case.id for case in listing.cases}
    assert ids["a b (1)/scan.nii.gz"] == "a_b__1_-scan"
    assert ids["a-b.nii.gz"] == "a-b"  # spelled as its name
    assert re.fullmatch(r"a-b-[0-9a-f]{8}", ids["a/b.nii.gz"])
    assert not listing.problems
    files.write_nifti(tmp_path / "a/b.nii", files.scan(1))
    the_problem(listed("folder", tmp_path), "a-b", "duplicate id of 3 cases", "a/b.nii.gz")
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


def test_links_inside_the_source_and_broken_links(tmp_path):
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


def test_linked_folders_are_read_once(tmp_path):
    store = files.write_folder(tmp_path / "store")
    source = tmp_path / "subset"
    source.mkdir()
    (source / "a").symlink_to(store / "images/site0")
    (source / "again").symlink_to(store / "images/site0")
    (source / "up").symlink_to(tmp_path)  # would be endless
    listing = listed("folder", source)
    assert [case.id for case in listing.cases] == ["a-scan0", "a-scan2"]
    assert not listing.problems
    assert listed("folder", source, follow_links=False).problems


def test_problems_are_printed_before_any_other_error(tmp_path, capsys):
    source = files.write_folder(tmp_path / "source")
    (source / "images/nothing.nii.gz").symlink_to(source / "gone.nii.gz")
    (source / "images/x.mnc").write_bytes(b"\0")
    with pytest.raises(UserError, match="modality of these images is unknown"):
        files.prepared(source, tmp_path / "out", "folder")
    told = capsys.readouterr().err
    assert "nothing.nii.gz: a broken link" in told
    assert "x.mnc: left out: MINC" in told
    Image.fromarray(files.fundus(0)).save(source / "images/x.png")
    with pytest.raises(UserError, match="holds volumes"):
        files.prepared(source, tmp_path / "out", "folder")
    assert "nothing.nii.gz: a broken link" in capsys.readouterr().err
    dicom = files.write_dicom(tmp_path / "dicom")
    (dicom / "b/c/notes.dcm").write_text("x" * 300)
    with pytest.raises(UserError, match="--window"):
        files.prepared(dicom, tmp_path / "out", "dicom", "--window=5,1")
    assert "notes.dcm: not a DICOM file" in capsys.readouterr().err


def test_a_split_file_may_use_the_names_of_the_files(tmp_path):
    names = ("Müller", "张三", "b")
    for i, name in enumerate(names):
        files.write_nifti(tmp_path / f"source/{name}.nii.gz", files.scan(i))
    splits = {"train": ["Müller", "b"], "val": ["张三"]}
    (tmp_path / "s.json").write_text(json.dumps(splits, ensure_ascii=False), encoding="utf-8")
    options = ["--recipe=mr", f"--splits={tmp_path / 's.json'}"]
    dataset = files.prepared(tmp_path / "source", tmp_path / "out", "folder", *options)
    assert {case.id for case in dataset.split("val")} == {"u5f20u4e09"}
