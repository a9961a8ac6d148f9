"""Interrupted, killed and repeated runs end with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from ssl3d.data import store
from ssl3d.data.preparation import collection
from ssl3d.data.preparation.case import prepare_case
from ssl3d.data.preparation.progress import PROGRESS
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.same_bytes import assert_same_bytes
from tests.support.source_files import run_prepare as run


def test_an_interrupted_run_resumes(tmp_path, monkeypatch, capsys):
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

    # A crash may also leave a truncated line of progress and partial files.
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


def test_a_killed_run_resumes(tmp_path):
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


def test_an_interrupted_change_leaves_no_outdated_manifest(tmp_path, monkeypatch):
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


def test_a_folder_with_other_files_is_refused(tmp_path):
    source = files.write_msd(tmp_path / "source")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        run("msd", source, tmp_path / "thesis")
    run("msd", source, tmp_path / "out")
    with pytest.raises(UserError, match="other settings"):
        run("msd", source, tmp_path / "out", "--spacing=2")
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "precious"
