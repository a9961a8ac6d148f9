"""Whole runs: the same bytes however they come about, splits, recipes, what is reported."""

from __future__ import annotations

import csv
import dataclasses
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import source_files as files
from PIL import Image

from ssl3d import prepare
from ssl3d.data import collection, geometry, intensity, preparation, store
from ssl3d.data.layouts import list_cases
from ssl3d.errors import UserError

REAL = os.environ.get("SSL3D_TEST_DATA")
needs_data = pytest.mark.skipif(
    not REAL, reason="SSL3D_TEST_DATA is not set (folder that contains Task04_Hippocampus)"
)


def run(layout, source, output, *more, workers=1):
    arguments = [f"--layout={layout}", f"--source={source}", f"--output={output}"]
    prepare.main([*arguments, f"--workers={workers}", *files.ARGUMENTS[layout], *more])
    return None if "--dry-run" in more else store.read(output)


def assert_same_bytes(first, second):
    """Two folders hold the same files with the same bytes."""
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert filecmp.cmp(first / name, second / name, shallow=False), name


@pytest.mark.parametrize("layout", sorted(files.WRITERS))
def test_every_layout_twice_gives_the_same_bytes(layout, tmp_path):
    source = files.WRITERS[layout](tmp_path / "source")
    first = run(layout, source, tmp_path / "first")
    run(layout, source, tmp_path / "second")
    assert_same_bytes(tmp_path / "first", tmp_path / "second")
    run(layout, source, tmp_path / "first")  # finished cases are kept, nothing changes
    assert_same_bytes(tmp_path / "first", tmp_path / "second")
    for case in first.cases:
        image = store.load_image(first, case)
        assert np.isfinite(np.asarray(image)).all()
        assert np.asarray(image, np.float32).std() > 0.05
        if case.labelled:
            label = store.load_label(first, case)
            counts = np.bincount(np.asarray(label).ravel(), minlength=len(first.classes))
            assert counts.tolist() == case.extra["voxels"]


def test_workers_do_not_change_the_bytes(tmp_path):
    source = files.write_msd(tmp_path / "source")
    for workers in (1, 3):
        run("msd", source, tmp_path / f"out{workers}", workers=workers)
    assert_same_bytes(tmp_path / "out1", tmp_path / "out3")


def test_a_copy_of_the_source_elsewhere_gives_the_same_bytes(tmp_path):
    source = files.write_msd(tmp_path / "source")
    shutil.copytree(source, tmp_path / "elsewhere/copy")
    run("msd", source, tmp_path / "first")
    run("msd", tmp_path / "elsewhere/copy", tmp_path / "second")
    assert_same_bytes(tmp_path / "first", tmp_path / "second")


def test_an_interrupted_run_goes_on_with_the_rest(tmp_path, monkeypatch, capsys):
    source = files.write_msd(tmp_path / "source")
    run("msd", source, tmp_path / "whole")
    prepared = []

    def until_the_fourth(case, job):
        if len(prepared) == 3:
            raise KeyboardInterrupt
        prepared.append(case.id)
        return preparation.prepare_case(case, job)

    monkeypatch.setattr(collection, "prepare_case", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run("msd", source, tmp_path / "out")
    with pytest.raises(UserError, match="no prepared data set"):
        store.read(tmp_path / "out")
    assert len(list((tmp_path / "out/images").iterdir())) == 3

    # A crash may also leave half a line in the notes and half a file that was not yet renamed.
    with (tmp_path / "out" / collection.PROGRESS).open("a") as notes:
        notes.write('{"case": {"id": "case_0')
    for name in ("images/.123.case_03.npy", ".123.progress.jsonl", ".45.dataset.json"):
        (tmp_path / "out" / name).write_bytes(b"half")
    again = []

    def remember(case, job):
        again.append(case.id)
        return preparation.prepare_case(case, job)

    monkeypatch.setattr(collection, "prepare_case", remember)
    capsys.readouterr()
    run("msd", source, tmp_path / "out")
    assert not set(again) & set(prepared)
    assert "3 were there already" in capsys.readouterr().out
    assert_same_bytes(tmp_path / "whole", tmp_path / "out")


def test_a_killed_run_goes_on_with_the_rest(tmp_path):
    source = files.write_msd(tmp_path / "source", count=30)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "ssl3d.prepare", "--layout=msd", "--workers=2"]
    command += [f"--source={source}", f"--output={output}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while len(list(output.glob("images/case*"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (output / store.MANIFEST).exists()
    run("msd", source, output)
    run("msd", source, tmp_path / "whole")
    assert_same_bytes(tmp_path / "whole", output)


def test_a_changed_file_is_prepared_again(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    run("msd", source, tmp_path / "out")
    files.write_nifti(source / "imagesTr/case_02.nii.gz", files.scan(99))
    capsys.readouterr()
    run("msd", source, tmp_path / "out")
    assert "6 were there already" in capsys.readouterr().out
    run("msd", source, tmp_path / "fresh")
    assert_same_bytes(tmp_path / "fresh", tmp_path / "out")


def test_an_interrupted_change_leaves_no_manifest_that_lies(tmp_path, monkeypatch):
    source = files.write_msd(tmp_path / "source")
    run("msd", source, tmp_path / "out")
    (tmp_path / "out/images/case_04.npy").unlink()
    files.write_nifti(source / "imagesTr/case_02.nii.gz", files.scan(99))

    def stop(case, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collection, "prepare_case", stop)
        with pytest.raises(KeyboardInterrupt):
            run("msd", source, tmp_path / "out")
    assert not (tmp_path / "out" / store.MANIFEST).exists()
    run("msd", source, tmp_path / "out")
    run("msd", source, tmp_path / "fresh")
    assert_same_bytes(tmp_path / "fresh", tmp_path / "out")


def test_cases_that_leave_the_source_leave_the_data_set(tmp_path):
    source = files.write_folder(tmp_path / "source")
    run("folder", source, tmp_path / "out")
    (source / "images/site0/scan0.nii.gz").unlink()
    (source / "labels/site0/scan0_seg.nii.gz").unlink()
    dataset = run("folder", source, tmp_path / "out")
    assert len(dataset.cases) == len(list((tmp_path / "out/images").iterdir())) == 3


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    source = files.write_msd(tmp_path / "source")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        run("msd", source, tmp_path / "thesis")
    run("msd", source, tmp_path / "out")
    with pytest.raises(UserError, match="other settings"):
        run("msd", source, tmp_path / "out", "--spacing=2")
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "precious"


def test_other_splits_of_prepared_data_cost_nothing(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    first = run("msd", source, tmp_path / "out")
    second = run("msd", source, tmp_path / "out", "--seed=1")
    assert "7 were there already" in capsys.readouterr().out
    assert [c.split for c in first.cases] != [c.split for c in second.cases]


def test_splits_are_dealt_by_subject_and_seed(tmp_path):
    source = files.write_bids(tmp_path / "source", subjects=10)
    dataset = run("bids", source, tmp_path / "out", "--seed=3")
    by_subject = {}
    for case in dataset.cases:
        by_subject.setdefault(case.subject, set()).add((case.split, case.order))
    assert all(len(splits) == 1 for splits in by_subject.values())
    sizes = {name: len({c.subject for c in dataset.split(name)}) for name in store.SPLITS}
    assert sizes == {"train": 6, "val": 2, "test": 2, "unlabelled": 0}
    assert dataset.splits_by == "subject"
    for name in ("train", "val", "test"):
        assert {c.order for c in dataset.split(name)} == set(range(sizes[name]))


def test_a_scan_without_label_stays_with_its_subject(tmp_path):
    source = files.write_bids(tmp_path / "source", subjects=6)
    for i in range(6):
        name = f"sub-{i}/ses-02/anat/sub-{i}_ses-02_space-T1w_dseg.nii.gz"
        (source / "derivatives/lesions" / name).unlink()
    dataset = run("bids", source, tmp_path / "out")
    assert not dataset.split("unlabelled")
    assert sum(case.labelled for case in dataset.cases) == 6
    for case in dataset.cases:
        twin = next(c for c in dataset.cases if c.subject == case.subject and c is not case)
        assert case.split == twin.split


def test_unlabelled_collections_have_a_validation_split_too(tmp_path):
    dataset = run("ukb", files.write_ukb(tmp_path / "source"), tmp_path / "out")
    assert dataset.split("train")
    assert dataset.split("val")
    assert not dataset.split("test", "unlabelled")


def test_splits_by_case_are_said_to_be_so(tmp_path, capsys):
    dataset = run("msd", files.write_msd(tmp_path / "source"), tmp_path / "out")
    assert dataset.splits_by == "case"
    assert "splits by case), as the source has no subject ids" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    assert {row["split by"] for row in rows} == {"case"}


def test_your_own_splits(tmp_path):
    source = files.write_msd(tmp_path / "source")
    names = [f"case_{i:02d}" for i in range(7)]
    wanted = {"train": names[3:0:-1], "val": names[4:5], "test": [names[0], names[5]]}
    wanted["unlabelled"] = names[6:]
    (tmp_path / "splits.json").write_text(json.dumps(wanted))
    lines = [f"{name},{split}" for split, members in wanted.items() for name in members]
    (tmp_path / "splits.csv").write_text("\n".join(["subject,split", *lines]))
    for file in ("splits.json", "splits.csv"):
        dataset = run("msd", source, tmp_path / "out", f"--splits={tmp_path / file}")
        found = {
            split: [c.id for c in sorted(dataset.split(split), key=lambda c: c.order)]
            for split in store.SPLITS
        }
        assert found == {split: list(members) for split, members in wanted.items()}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("s.json", "[1, 2]", "not JSON like"),
        ("s.json", '{"train": "all"}', "not JSON like"),
        ("s.json", '{"training": ["case_00"]}', "unknown split 'training'"),
        ("s.json", '{"train": ["case_00"], "val": ["case_00"]}', "in train and in val"),
        ("s.json", '{"train": ["case_99"]}', "names 'case_99'"),
        ("s.json", '{"train": ["case_00"]}', "case case_01 is in no split"),
        ("s.csv", "case,part\na,b\n", "needs the columns"),
        ("gone.json", None, "no such split file"),
    ],
)
def test_split_files_that_are_wrong(tmp_path, name, content, what):
    source = files.write_msd(tmp_path / "source", count=3)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=what) as error:
        run("msd", source, tmp_path / "out", f"--splits={tmp_path / name}")
    assert name in str(error.value)


def test_a_split_file_may_name_cases_that_are_left_out(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=4, unlabelled=0)
    (source / "imagesTr/case_01.nii.gz").write_bytes(b"damaged")
    (source / "imagesTr/case_02.nii.gz").unlink()
    file = tmp_path / "s.json"
    file.write_text('{"train": ["case_00", "case_01", "case_02"], "val": ["case_03"]}')
    dataset = run("msd", source, tmp_path / "out", f"--splits={file}", "--on-error=skip")
    assert {case.id: case.split for case in dataset.cases} == {"case_00": "train", "case_03": "val"}
    assert "names 'case_02', but no case" in capsys.readouterr().err


def test_a_wrong_split_file_is_found_before_anything_is_prepared(tmp_path):
    source = files.write_msd(tmp_path / "source", count=3)
    (tmp_path / "s.json").write_text('{"train": ["case_00"]}')
    with pytest.raises(UserError, match="is in no split"):
        run("msd", source, tmp_path / "out", f"--splits={tmp_path / 's.json'}", "--dry-run")
    assert not (tmp_path / "out").exists()


def test_a_subject_in_two_splits_of_a_split_file(tmp_path):
    source = files.write_bids(tmp_path / "source")
    names = [f"sub-{i}_ses-0{j}" for i in range(3) for j in (1, 2)]
    (tmp_path / "s.json").write_text(json.dumps({"train": names[:5], "val": names[5:]}))
    with pytest.raises(UserError, match="subject sub-2 would be in train and in val"):
        run("bids", source, tmp_path / "out", f"--splits={tmp_path / 's.json'}")


def test_the_same_image_under_two_ids(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=8)
    dataset = run("msd", source, tmp_path / "first")
    train = [c.id for c in dataset.split("train")]
    other = dataset.split("test")[0].id
    image = source / "imagesTr"
    shutil.copy(image / f"{train[0]}.nii.gz", image / f"{train[1]}.nii.gz")
    capsys.readouterr()
    run("msd", source, tmp_path / "within")
    line = f"note: {train[1]}: the same image, voxel by voxel, as {train[0]}; both are in train"
    assert line in capsys.readouterr().err

    shutil.copy(image / f"{train[2]}.nii.gz", image / f"{other}.nii.gz")
    with pytest.raises(UserError, match="one case cannot be prepared"):
        run("msd", source, tmp_path / "across")
    assert "the same image, voxel by voxel" in capsys.readouterr().err
    assert not (tmp_path / "across" / store.MANIFEST).exists()
    kept = run("msd", source, tmp_path / "across", "--on-error=skip")
    assert len(kept.cases) == len(dataset.cases) - 1


def test_a_full_disk_is_said_first(tmp_path, monkeypatch):
    source = files.write_msd(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"need up to 0.16 MB, the disk has 0.05 MB free"):
        run("msd", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run("msd", source, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run("msd", source, tmp_path / "out")  # what is there already needs no room

    # Half a file does: it is written again.
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*/*.npy"))
    collection.check_disk(tmp_path / "out", written + usage.free)
    array = store.image_path(tmp_path / "out", "case_00")
    array.rename(array.with_name(f".123.{array.name}"))
    with pytest.raises(UserError, match="make room"):
        collection.check_disk(tmp_path / "out", written + usage.free)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("96 requested and 0 written")]
)
def test_a_disk_that_fills_up_leaves_no_case_out(tmp_path, monkeypatch, error):
    source = files.write_msd(tmp_path / "source", count=4, unlabelled=0)
    run("msd", source, tmp_path / "whole")
    write = store.write_arrays

    def write_two(folder, name, *arrays):
        if name > "case_01":
            raise error
        write(folder, name, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", write_two)
        with pytest.raises(UserError, match=r"out: (No space|96 requested.* full).* run again"):
            run("msd", source, tmp_path / "out", "--on-error=skip")
    assert not (tmp_path / "out" / store.MANIFEST).exists()
    run("msd", source, tmp_path / "out")
    assert_same_bytes(tmp_path / "out", tmp_path / "whole")


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
    job = preparation.job_of_dataset(dataset, source)
    assert job.recipe.size == (24, 24, 24)
    for case in list_cases("brats", source).cases:
        prepared = preparation.prepare_arrays(case, job)
        stored = next(c for c in dataset.cases if c.id == case.id)
        image = store.load_image(dataset, stored)
        np.testing.assert_array_equal(prepared.image.astype(np.float16), image)
        np.testing.assert_array_equal(prepared.label, store.load_label(dataset, stored))
        assert prepared.case.affine == stored.affine
    phantom = dataclasses.replace(dataset, extra={})
    with pytest.raises(UserError, match="does not say how it was prepared"):
        preparation.job_of_dataset(phantom, source)


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
    prepare.main(
        [
            "--layout=folder",
            f"--source={tmp_path / 'source'}",
            f"--output={tmp_path / 'out'}",
            "--size=48",
            "--workers=1",
        ]
    )
    dataset = store.read(tmp_path / "out")
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


PEAK = """
import resource, sys
from pathlib import Path
from ssl3d.data.listing import SourceCase
from ssl3d.data.preparation import Job, prepare_case
from ssl3d.data.recipes import RECIPES
folder = Path(sys.argv[1])
case = SourceCase("ct", "ct", ((folder / "ct.nii.gz",),), folder / "label.nii.gz")
recipe = RECIPES[sys.argv[2]]
prepare_case(case, Job(folder, folder / "out", recipe, ("CT",), {0: 0, 1: 1}, 2))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pancreas", "ct", "mr"])
def test_peak_memory_of_a_large_ct(tmp_path, recipe):
    shape = (512, 512, 300)
    x, y, z = np.ogrid[tuple(slice(side) for side in shape)]
    body = ((x - 256) / 200) ** 2 + ((y - 256) / 150) ** 2 < 1
    image = np.where(body, 40, -1000).astype(np.int16) + (z % 7).astype(np.int16)
    organ = ((x - 256) / 60) ** 2 + ((y - 256) / 50) ** 2 + ((z - 150) / 50) ** 2 < 1
    affine = np.diag([-0.75, -0.75, 1.0, 1.0])
    files.write_nifti(tmp_path / "ct.nii.gz", image, affine)
    files.write_nifti(tmp_path / "label.nii.gz", organ.astype(np.uint8), affine)
    command = [sys.executable, "-c", PEAK, str(tmp_path), recipe]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 4 * 4 * image.size


@needs_data
def test_hippocampus(tmp_path):
    started = time.monotonic()
    dataset = run("msd", Path(REAL) / "Task04_Hippocampus", tmp_path / "out", workers=2)
    seconds = time.monotonic() - started
    sizes = [len(dataset.split(name)) for name in store.SPLITS]
    assert sizes == [96, 32, 32, 100]
    assert dataset.rank == 3
    for case in dataset.cases[:10]:
        image = np.asarray(store.load_image(dataset, case), np.float32)
        assert abs(image.mean()) < 0.01
        assert abs(image.std() - 1) < 0.01
        assert case.spacing == (1.0, 1.0, 1.0)
    assert seconds < 30
