"""Whole runs: the same bytes however they come about, on disks that are full or fail."""

from __future__ import annotations

import filecmp
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.data.preparation import collection, sizing
from ssl3d.data.preparation.case import prepare_case
from ssl3d.data.preparation.progress import PROGRESS
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run


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

    def until_the_fourth(case, settings):
        if len(prepared) == 3:
            raise KeyboardInterrupt
        prepared.append(case.id)
        return prepare_case(case, settings)

    monkeypatch.setattr(collection, "prepare_case", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run("msd", source, tmp_path / "out")
    with pytest.raises(UserError, match="no prepared data set"):
        store.read(tmp_path / "out")
    assert len(list((tmp_path / "out/images").iterdir())) == 3

    # A crash may also leave half a line in the notes and half a file that was not yet renamed.
    with (tmp_path / "out" / PROGRESS).open("a") as notes:
        notes.write('{"case": {"id": "case_0')
    for name in ("images/.123.case_03.npy", ".123.progress.jsonl", ".45.dataset.json"):
        (tmp_path / "out" / name).write_bytes(b"half")
    again = []

    def remember(case, settings):
        again.append(case.id)
        return prepare_case(case, settings)

    monkeypatch.setattr(collection, "prepare_case", remember)
    capsys.readouterr()
    run("msd", source, tmp_path / "out")
    assert not set(again) & set(prepared)
    assert "3 already prepared" in capsys.readouterr().out
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
    assert "6 already prepared" in capsys.readouterr().out
    run("msd", source, tmp_path / "fresh")
    assert_same_bytes(tmp_path / "fresh", tmp_path / "out")


def test_an_interrupted_change_leaves_no_manifest_that_lies(tmp_path, monkeypatch):
    source = files.write_msd(tmp_path / "source")
    run("msd", source, tmp_path / "out")
    (tmp_path / "out/images/case_04.npy").unlink()
    files.write_nifti(source / "imagesTr/case_02.nii.gz", files.scan(99))

    def stop(case, settings):
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
    sizing.check_disk(tmp_path / "out", written + usage.free)
    array = store.image_path(tmp_path / "out", "case_00")
    array.rename(array.with_name(f".123.{array.name}"))
    with pytest.raises(UserError, match="make room"):
        sizing.check_disk(tmp_path / "out", written + usage.free)


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
