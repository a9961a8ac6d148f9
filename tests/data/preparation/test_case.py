"""One prepared case: labels, grades, intensities, and back to the source."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssl3d.data import geometry, intensity, store
from ssl3d.data.layouts import list_cases
from ssl3d.data.preparation.case import prepare_arrays, settings_of_dataset
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run


@pytest.mark.parametrize("classes", ["0:none,1:DR,2:DR,3:DR,4:DR", "0:a,2:b,1:c,3:d,4:e,5:f"])
def test_grades_become_classes(tmp_path, classes):
    source = files.write_images(tmp_path / "source")
    dataset = run("images", source, tmp_path / "out", f"--classes={classes}")
    names = {int(value): name for value, name in (x.split(":") for x in classes.split(","))}
    grades = {f"eye{i}": names[i % 5] for i in range(6)}
    assert {case.id: dataset.classes[case.grade] for case in dataset.cases} == grades


def test_the_manifest_alone_maps_labels_back_to_the_source(tmp_path):
    source = files.write_brats(tmp_path / "source")
    dataset = run("brats", source, tmp_path / "out")
    for case in dataset.cases:
        back, affine = geometry.to_source(np.asarray(store.load_label(dataset, case)), case)
        assert back.shape == files.SHAPE
        np.testing.assert_allclose(affine, np.eye(4))
        assert set(np.unique(back)) == {0, 1, 2, 3}


def test_a_new_image_is_prepared_like_the_data_set(tmp_path):
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


def test_the_manifest_maps_pictures_back_to_the_source(tmp_path):
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


def test_brats_labels_of_all_years_agree(tmp_path):
    dataset = run("brats", files.write_brats(tmp_path / "source"), tmp_path / "out")
    assert dataset.classes == ("background", "necrosis", "oedema", "enhancing tumour")
    counts = {tuple(case.extra["voxels"]) for case in dataset.cases}
    assert len(counts) == 1  # with 4 (until 2021) as with 3 (2023)


def test_own_classes_merge_and_rename(tmp_path):
    source = files.write_folder(tmp_path / "source")
    dataset = run("folder", source, tmp_path / "out", "--classes=0:background,1:organ,2:organ")
    assert dataset.classes == ("background", "organ")
    assert all(np.asarray(store.load_label(dataset, c)).max() == 1 for c in dataset.cases)


def test_the_normalisation_can_be_inverted(tmp_path):
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pancreas", "ct", "mr"])
def test_peak_memory_of_a_large_ct(tmp_path, recipe, request):
    shape = (512, 512, 300)
    x, y, z = np.ogrid[tuple(slice(side) for side in shape)]
    body = ((x - 256) / 200) ** 2 + ((y - 256) / 150) ** 2 < 1
    image = np.where(body, 40, -1000).astype(np.int16) + (z % 7).astype(np.int16)
    organ = ((x - 256) / 60) ** 2 + ((y - 256) / 50) ** 2 + ((z - 150) / 50) ** 2 < 1
    affine = np.diag([-0.75, -0.75, 1.0, 1.0])
    files.write_nifti(tmp_path / "ct.nii.gz", image, affine)
    files.write_nifti(tmp_path / "label.nii.gz", organ.astype(np.uint8), affine)
    command = [sys.executable, "-m", "tests.support.peak_memory", str(tmp_path), recipe]
    peak = int(
        subprocess.run(
            command, cwd=request.config.rootpath, capture_output=True, text=True, check=True
        ).stdout
    )
    assert peak < 4 * 4 * image.size


def test_what_the_crop_cuts_away_is_reported(tmp_path, capsys):
    image = np.zeros((40, 40, 30), np.int16)
    image[10:34, 10:34, 6:26] = 300 + np.arange(20)
    label = np.zeros(image.shape, np.uint8)
    label[2:6, 20, 10], label[12:14, 20, 10] = 1, 1  # outside the head, inside
    for i in range(3):
        files.write_nifti(
            tmp_path / f"source/images/p{i}.nii.gz", (image + i * (image > 0)).astype(np.int16)
        )
        files.write_nifti(tmp_path / f"source/labels/p{i}.nii.gz", label)
    dataset = files.prepared(tmp_path / "source", tmp_path / "out", "folder", "--recipe=mr")
    line = "note: p0: the crop cuts away 4 of 6 voxels with the label 1; --crop=no keeps them"
    assert line in capsys.readouterr().err
    assert dataset.cases[0].extra["crop"]["labels"] == [[image.size - 6, 6], [24 * 24 * 20 - 2, 2]]
    rows = csv.DictReader((tmp_path / "out/report.csv").open())
    row = next(row for row in rows if row["status"] == "prepared")
    assert (row["foreground kept"], row["label kept"]) == ("1.0000", "0.3333")
    # Kept cases say it again.
    files.prepared(tmp_path / "source", tmp_path / "out", "folder", "--recipe=mr")
    assert line in capsys.readouterr().err
    whole = files.prepared(
        tmp_path / "source", tmp_path / "o2", "folder", "--recipe=mr", "--crop=no"
    )
    assert whole.cases[0].extra["voxels"][1] == 6


def test_a_class_that_a_coarse_grid_loses_is_reported(tmp_path, capsys):
    label = files.segmentation()
    label[2, 2, 2] = 3
    for i in range(3):
        files.write_nifti(tmp_path / f"source/images/p{i}.nii.gz", files.scan(i))
        files.write_nifti(tmp_path / f"source/labels/p{i}.nii.gz", label)
    options = ["--recipe=mr", "--crop=no", "--spacing=2"]
    files.prepared(tmp_path / "source", tmp_path / "out", "folder", *options)
    assert "no voxel with the label 3 is left" in capsys.readouterr().err


def test_an_image_like_a_label_map_is_noted(tmp_path, capsys):
    image = files.segmentation() + (files.scan(0) > 100)
    for i in range(3):
        files.write_nifti(tmp_path / f"source/p{i}.nii.gz", np.roll(image, i, 0).astype(np.uint8))
    files.prepared(tmp_path / "source", tmp_path / "out", "folder", "--recipe=mr", "--crop=no")
    assert "is it a label map?" in capsys.readouterr().err


@pytest.mark.parametrize("slices", [4, 6])
def test_volumes_of_few_slices_are_prepared(tmp_path, slices):
    for i in range(3):
        files.write_nifti(
            tmp_path / f"source/p{i}.nii.gz",
            files.scan(i, (30, 32, slices)),
            np.diag([1.4, 1.4, 10, 1]),
        )
    options = ["--recipe=mr", "--crop=no", "--spacing=1.4,1.4,10"]
    dataset = files.prepared(tmp_path / "source", tmp_path / "out", "folder", *options)
    assert {case.shape for case in dataset.cases} == {(30, 32, slices)}


@pytest.mark.parametrize("fault", ["another shape", "an unknown value", "unreadable", "missing"])
def test_a_faulty_label_never_stops_pretraining(tmp_path, capsys, fault):
    source = files.write_msd(tmp_path / "source")
    path = source / "labelsTr/case_01.nii.gz"
    if fault == "another shape":
        files.write_nifti(path, files.segmentation()[1:])
    elif fault == "an unknown value":
        files.write_nifti(path, files.segmentation() * 5)
    elif fault == "unreadable":
        path.write_bytes(b"no image")
    else:
        path.unlink()
    with pytest.raises(UserError):
        run("msd", source, tmp_path / "out")
    assert "case_01" in capsys.readouterr().err
    skipped = run("msd", source, tmp_path / "skipped", "--on-error=skip")
    case = next(case for case in skipped.cases if case.id == "case_01")
    assert not case.labelled
    assert case.split == "unlabelled"
    alone = run("msd", source, tmp_path / "alone", "--no-labels")
    assert len(alone.cases) == 7
    assert not any(case.labelled for case in alone.cases)
    assert alone.split("val")
