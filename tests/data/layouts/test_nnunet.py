"""nnU-Net raw data."""

from __future__ import annotations

from tests.support import source_files as files
from tests.support.listings import listed, the_problem


def test_channels_and_classes(tmp_path):
    folder = files.write_nnunet(tmp_path)
    listing = listed("nnunet", folder)
    assert listing.modalities == ("T1", "T2")
    assert listing.classes == {0: "background", 1: "body", 2: "core"}
    names = [paths[0].name for paths in listing.cases[0].images]
    assert names == ["c0_0000.nii.gz", "c0_0001.nii.gz"]
    (folder / "imagesTr/c0_0001.nii.gz").unlink()
    the_problem(listed("nnunet", folder), "c0_0001.nii.gz", "missing channel (T2)")


def test_unmatched_labels_and_images(tmp_path):
    folder = files.write_nnunet(tmp_path)
    (folder / "labelsTr/c1.nii.gz").rename(folder / "labelsTr/c9.nii.gz")
    listing = listed("nnunet", folder)
    the_problem(listing, "c9.nii.gz", "a label without an image")
    assert [note.name for note in listing.notes] == ["c1"]
    files.write_nifti(folder / "imagesTr/plain.nii.gz", files.scan(0))
    files.write_nifti(folder / "imagesTr/c0_0002.nii.gz", files.scan(0))
    reasons = " ".join(p.reason for p in listed("nnunet", folder).problems)
    assert "channel number like _0000" in reasons
    assert "names only 2 channels" in reasons
