"""Medical Segmentation Decathlon."""

from __future__ import annotations

import json

import pytest

from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed


def test_cases_and_classes(tmp_path):
    folder = files.write_msd(tmp_path)
    (folder / "imagesTr/._case_00.nii.gz").write_bytes(b"left by macOS")
    listing = listed("msd", folder)
    assert (listing.name, listing.modalities) == ("Hippocampus", ("MRI",))
    assert listing.classes == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert listing.splits_by == "case"
    assert [case.label is None for case in listing.cases] == [False] * 6 + [True]
    assert not listing.notes


def test_invalid_entries_are_problems(tmp_path):
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
    assert [case.id for case in listing.cases] == ["case_01", "case_04", "case_05", "case_06"]
    assert listing.cases[0].label is None  # its image is whole
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
def test_an_invalid_manifest_is_refused(tmp_path, edit, what):
    folder = files.write_msd(tmp_path)
    document = json.loads((folder / "dataset.json").read_text())
    edit(document)
    (folder / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=what):
        listed("msd", folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        listed("msd", folder)


def test_a_manifest_with_a_byte_order_mark(tmp_path):
    file = files.write_msd(tmp_path) / "dataset.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(listed("msd", tmp_path).cases) == 7
