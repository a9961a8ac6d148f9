"""nnU-Net's raw data beside a prepared data set: the same voxels, classes and splits."""

import json

import nibabel as nib
import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from tests.support import source_files as files


@pytest.mark.parametrize("layout", ["msd", "brats"])
def test_preparing_the_export_gives_the_same_arrays(layout, tmp_path):
    source = files.WRITERS[layout](tmp_path / "source")
    extra = ["--size=24"] if layout == "brats" else []
    first = files.run_prepare(layout, source, tmp_path / "first", "--export=nnunet", *extra)
    (raw,) = (tmp_path / "first/nnunet").iterdir()
    recipe = first.extra["settings"]["recipe"]["name"]
    again = files.prepared(
        raw, tmp_path / "again", None, f"--recipe={recipe}", f"--name={first.name}", *extra
    )
    assert again.classes == first.classes
    assert {case.id for case in again.cases} == {case.id for case in first.cases}
    for case in first.cases:
        other = next(o for o in again.cases if o.id == case.id)
        np.testing.assert_array_equal(
            store.load_image(again, other), store.load_image(first, case), err_msg=case.id
        )
        if case.split in ("train", "val"):
            label = store.load_label(first, case)
            np.testing.assert_array_equal(store.load_label(again, other), label)


def test_splits_geometry_and_values_that_nobody_annotated(tmp_path):
    source = files.write_nnunet(tmp_path / "source", count=6)
    document = json.loads((source / "dataset.json").read_text())
    document["labels"] = {"background": 0, "body": 1, "ignore": 2}
    (source / "dataset.json").write_text(json.dumps(document))
    dataset = files.prepared(source, tmp_path / "data", "nnunet", "--export=nnunet")
    (raw,) = (tmp_path / "data/nnunet").iterdir()
    about = json.loads((raw / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "body": 1, "ignore": 2}
    assert about["channel_names"] == {"0": "T1", "1": "T2"}
    (split,) = json.loads((raw / "splits_final.json").read_text())
    for part in ("train", "val"):
        assert split[part] == [case.id for case in dataset.split(part)]
    assert about["numTraining"] == len(list((raw / "labelsTr").iterdir()))
    case = dataset.split("train")[0]
    label = nib.load(raw / f"labelsTr/{case.id}.nii.gz")
    image = nib.load(raw / f"imagesTr/{case.id}_0001.nii.gz")
    assert image.shape == label.shape
    np.testing.assert_allclose(image.affine, label.affine)
    original = nib.as_closest_canonical(nib.load(source / f"imagesTr/{case.id}_0001.nii.gz"))
    np.testing.assert_allclose(image.get_fdata(), original.get_fdata())
    np.testing.assert_allclose(image.affine, original.affine, atol=1e-5)
    truth = nib.as_closest_canonical(nib.load(source / f"labelsTr/{case.id}.nii.gz"))
    np.testing.assert_array_equal(label.get_fdata(), truth.get_fdata())
    test = dataset.split("test")[0]
    assert (raw / f"labelsTs/{test.id}.nii.gz").exists()


def test_without_label_maps_there_is_nothing_to_export(tmp_path):
    source = files.write_images(tmp_path / "source")
    with pytest.raises(UserError, match="--export=nnunet: no case has a label map"):
        files.run_prepare("images", source, tmp_path / "data", "--export=nnunet")
