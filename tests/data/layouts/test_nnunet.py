"""nnU-Net raw data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ssl3d.data import pipeline, store
from ssl3d.data.layouts.listing import IGNORED
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


def edited(folder, **values):
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def test_voxels_to_ignore_are_of_no_class(tmp_path):
    labels = {"background": 0, "body": 1, "ignore": 2}
    folder = edited(files.write_nnunet(tmp_path / "source"), labels=labels)
    dataset = files.prepared(folder, tmp_path / "out", "nnunet")
    assert dataset.classes == ("background", "body")
    label = np.asarray(store.load_label(dataset, dataset.cases[0]))
    assert set(np.unique(label)) == {0, 1, pipeline.OUTSIDE}
    assert dataset.cases[0].extra["voxels"] == [(label == 0).sum(), (label == 1).sum()]
    # Also in the user's words.
    named = "--classes=0:background,1:ignore,2:core"
    dataset = files.prepared(folder, tmp_path / "other", "nnunet", named)
    assert dataset.classes == ("background", "core")
    files.prepared(folder, tmp_path / "plan", "nnunet", "--dry-run")
    assert IGNORED == pipeline.OUTSIDE


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(tmp_path, ending, channels):
    source = tmp_path / "source"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
    for i in range(3):
        picture = files.fundus(i)
        picture = picture if channels == 3 else picture[..., 0]
        Image.fromarray(picture).save(source / f"imagesTr/c{i}_0000{ending}")
        mask = (files.fundus(i)[..., 0] > 30).astype(np.uint8)
        Image.fromarray(mask).save(source / f"labelsTr/c{i}{ending}")
    names = ["R", "G", "B"] if channels == 3 else ["grey"]
    document = {
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": {"background": 0, "disc": 1},
        "file_ending": ending,
    }
    (source / "dataset.json").write_text(json.dumps(document))
    dataset = files.prepared(source, tmp_path / "out", "nnunet")
    assert dataset.rank == 2
    assert dataset.modalities == tuple(names)
    assert all(case.labelled for case in dataset.cases)
