"""Ids, subjects and links, whatever the layout."""

from __future__ import annotations

import os
import re

import pytest

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
