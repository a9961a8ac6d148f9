"""Whole runs: the same bytes however they come about."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.same_bytes import assert_same_bytes
from tests.support.source_files import run_prepare as run


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


def test_the_number_of_workers_does_not_change_the_bytes(tmp_path):
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


def test_cases_that_leave_the_source_leave_the_data_set(tmp_path):
    source = files.write_folder(tmp_path / "source")
    run("folder", source, tmp_path / "out")
    (source / "images/site0/scan0.nii.gz").unlink()
    (source / "labels/site0/scan0_seg.nii.gz").unlink()
    dataset = run("folder", source, tmp_path / "out")
    assert len(dataset.cases) == len(list((tmp_path / "out/images").iterdir())) == 3


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("96 requested and 0 written")]
)
def test_a_disk_that_fills_up_excludes_no_case(tmp_path, monkeypatch, error):
    source = files.write_msd(tmp_path / "source", count=4, unlabelled=0)
    run("msd", source, tmp_path / "whole")
    write = store.write_arrays

    def write_two(folder, name, *arrays):
        if name > "case_01":
            raise error
        return write(folder, name, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_arrays", write_two)
        with pytest.raises(UserError, match=r"out: (No space|96 requested.* full).* run again"):
            run("msd", source, tmp_path / "out", "--on-error=skip")
    assert not (tmp_path / "out" / store.MANIFEST).exists()
    run("msd", source, tmp_path / "out")
    assert_same_bytes(tmp_path / "out", tmp_path / "whole")


def test_hippocampus(task04, tmp_path):
    started = time.monotonic()
    dataset = run("msd", task04, tmp_path / "out", workers=2)
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
