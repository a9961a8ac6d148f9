"""Any tree of volumes or pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed, the_problem


def test_images_and_labels(tmp_path):
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
def test_labels_inside_the_source_are_not_images(tmp_path, monkeypatch, relative):
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


def test_unmatched_labels_and_images(tmp_path):
    folder = files.write_folder(tmp_path)
    (folder / "labels/site0/scan0_seg.nii.gz").rename(folder / "labels/scan9.nii.gz")
    listing = listed("folder", folder)
    the_problem(listing, "scan9.nii.gz", "a label without an image")
    assert [note.name for note in listing.notes] == [str(folder / "images/site0/scan0.nii.gz")]


def test_pictures_and_volumes_are_not_mixed(tmp_path):
    folder = files.write_folder(tmp_path)
    Image.fromarray(files.fundus(0)).save(folder / "images/x.png")
    with pytest.raises(UserError, match=r"volumes \(scan0.nii.gz\) and pictures \(x.png\)"):
        listed("folder", folder)
