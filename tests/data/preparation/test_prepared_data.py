"""What is in a prepared data set, and what is said of it before and after."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from ssl3d.data import geometry, intensity, store
from ssl3d.data.layouts import list_cases
from ssl3d.data.preparation.case import prepare_arrays, settings_of_dataset
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run


def test_the_estimate_is_what_is_written(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    run("msd", source, tmp_path / "out", "--dry-run")
    assert not (tmp_path / "out").exists()
    plan = capsys.readouterr().out
    assert "case_00: 20 x 22 x 18 voxels of 1 x 1 x 1 mm -> 20 x 22 x 18" in plan
    assert "background 7704, Anterior 208, Posterior 8" in plan
    promised = float(plan.split("disk space: up to ")[1].split(" MB")[0]) * 1e6
    run("msd", source, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*/*.npy"))
    assert promised == pytest.approx(written, rel=0.05)


def test_a_dry_run_lists_what_is_wrong(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    (source / "imagesTr/case_01.nii.gz").write_bytes(b"")
    (source / "labelsTr/case_02.nii.gz").unlink()
    with pytest.raises(UserError, match="2 cases"):
        run("msd", source, tmp_path / "out", "--dry-run")
    text = capsys.readouterr().err
    assert "case_01.nii.gz: the file is empty" in text
    assert "case_02.nii.gz: no such file" in text


def test_a_dry_run_knows_unknown_label_values_and_wrong_ids(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=3)
    files.write_nifti(source / "labelsTr/case_01.nii.gz", files.segmentation() * 4)
    (source / "imagesTr/case_02.nii.gz").rename(source / "imagesTr/case 02.nii.gz")
    text = (source / "dataset.json").read_text()
    (source / "dataset.json").write_text(text.replace("imagesTr/case_02", "imagesTr/case 02"))
    with pytest.raises(UserError, match="2 cases"):
        run("msd", source, tmp_path / "out", "--dry-run")
    errors = capsys.readouterr().err
    assert "unknown label value 4, 8" in errors
    assert "'case 02' cannot be a file name" in errors


@pytest.mark.parametrize("classes", ["0:none,1:DR,2:DR,3:DR,4:DR", "0:a,2:b,1:c,3:d,4:e,5:f"])
def test_grades_become_classes(tmp_path, classes):
    source = files.write_images(tmp_path / "source")
    dataset = run("images", source, tmp_path / "out", f"--classes={classes}")
    names = {int(value): name for value, name in (x.split(":") for x in classes.split(","))}
    grades = {f"eye{i}": names[i % 5] for i in range(6)}
    assert {case.id: dataset.classes[case.grade] for case in dataset.cases} == grades


def test_a_file_name_that_is_not_utf8(tmp_path):
    source = files.write_folder(tmp_path / "source")
    (source / "images/site0/scan0.nii.gz").rename(source / "images/site0/\udcff.nii.gz")
    (source / "labels/site0/scan0_seg.nii.gz").rename(source / "labels/site0/\udcff.nii.gz")
    run("folder", source, tmp_path / "out")
    assert "\\udcff.nii.gz" in (tmp_path / "out/report.csv").read_text()


def test_report_and_contact_sheet(tmp_path):
    source = files.write_msd(tmp_path / "source")
    (source / "imagesTr/case_05.nii.gz").write_bytes(b"no")
    dataset = run("msd", source, tmp_path / "out", "--on-error=skip")
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "out/report.csv").open())}
    assert rows["case_05"]["status"] == "left out"
    assert "not a NIfTI file" in rows["case_05"]["reason"]
    assert rows["case_00"]["voxels of Anterior"] == "208"
    assert rows["case_00"]["shape"] == "20x22x18"
    assert rows["case_06"]["split"] == "unlabelled"
    sheet = np.asarray(Image.open(tmp_path / "out/contact_sheet.png"), np.int16)
    colourful = np.ptp(sheet, axis=-1) > 40
    assert colourful.mean() > 0.005  # the labels
    assert sheet.shape[0] < sheet.shape[1]
    assert len(dataset.cases) == 6


def test_predictions_can_return_from_the_manifest_alone(tmp_path):
    source = files.write_brats(tmp_path / "source")
    dataset = run("brats", source, tmp_path / "out")
    for case in dataset.cases:
        back, affine = geometry.to_source(np.asarray(store.load_label(dataset, case)), case)
        assert back.shape == files.SHAPE
        np.testing.assert_allclose(affine, np.eye(4))
        assert set(np.unique(back)) == {0, 1, 2, 3}


def test_a_new_image_is_prepared_like_those_of_the_data_set(tmp_path):
    source = files.write_brats(tmp_path / "source")
    dataset = run("brats", source, tmp_path / "out")
    settings = settings_of_dataset(dataset, source)
    assert settings.recipe.size == (24, 24, 24)
    for case in list_cases("brats", source).cases:
        prepared = prepare_arrays(case, settings)
        stored = next(c for c in dataset.cases if c.id == case.id)
        image = store.load_image(dataset, stored)
        np.testing.assert_array_equal(prepared.image.astype(np.float16), image)
        np.testing.assert_array_equal(prepared.label, store.load_label(dataset, stored))
        assert prepared.case.affine == stored.affine
    phantom = dataclasses.replace(dataset, extra={})
    with pytest.raises(UserError, match="settings of the preparation are missing"):
        settings_of_dataset(phantom, source)


def test_pictures_return_too(tmp_path):
    dataset = run("images", files.write_images(tmp_path / "source"), tmp_path / "out")
    back, affine = geometry.to_source(np.ones((32, 32), np.uint8), dataset.cases[0])
    disc = files.fundus(0).max(axis=-1) > 20
    assert back.shape == disc.shape
    assert np.mean(back[disc]) > 0.99
    assert back[0, 0] == 0
    np.testing.assert_array_equal(affine, np.eye(3))


def test_picture_labels_are_prepared(tmp_path):
    for i in range(3):
        (tmp_path / "source/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source/labels").mkdir(parents=True, exist_ok=True)
        picture = files.fundus(i)
        Image.fromarray(picture).save(tmp_path / f"source/images/p{i}.png")
        mask = ((picture[..., 0] > 30) * 255).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"source/labels/p{i}.png")
    dataset = files.prepared(tmp_path / "source", tmp_path / "out", "folder", "--size=48")
    assert dataset.rank == 2
    assert dataset.classes == ("background", "label 255")
    label = np.asarray(store.load_label(dataset, dataset.cases[0]))
    assert label.shape == (48, 48)
    assert set(np.unique(label)) == {0, 1}


def test_brats_classes_four_become_three(tmp_path):
    dataset = run("brats", files.write_brats(tmp_path / "source"), tmp_path / "out")
    assert dataset.classes == ("background", "necrosis", "oedema", "enhancing tumour")
    counts = {tuple(case.extra["voxels"]) for case in dataset.cases}
    assert len(counts) == 1  # with 4 (until 2021) as with 3 (2023)


def test_own_classes_merge_and_rename(tmp_path):
    source = files.write_folder(tmp_path / "source")
    dataset = run("folder", source, tmp_path / "out", "--classes=0:background,1:organ,2:organ")
    assert dataset.classes == ("background", "organ")
    assert all(np.asarray(store.load_label(dataset, c)).max() == 1 for c in dataset.cases)


def test_intensities_can_be_undone(tmp_path):
    source = files.write_msd(tmp_path / "source")
    dataset = run("msd", source, tmp_path / "out")
    case = dataset.cases[0]
    scaling = intensity.Scaling(**case.extra["intensity"])
    restored = intensity.undo(np.asarray(store.load_image(dataset, case)), scaling)[..., 0]
    expected = np.clip(files.scan(0), scaling.low[0], scaling.high[0])
    np.testing.assert_allclose(restored, expected, atol=0.5)


def test_the_brain_mask_is_applied(tmp_path):
    dataset = run("ukb", files.write_ukb(tmp_path / "source"), tmp_path / "out")
    image = np.asarray(store.load_image(dataset, dataset.cases[0]), np.float32)
    assert np.ptp(image[0, 0, 0]) < np.ptp(image)
    corner = image[:3, :3, :3, 0]
    assert np.ptp(corner) == 0  # outside the mask: one value, no noise
