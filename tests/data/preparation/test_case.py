"""One prepared case: labels, grades, intensities, and back to the source."""

from __future__ import annotations

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
