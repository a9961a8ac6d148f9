"""The plan of a preparation: sizes, label values, disk space."""

from __future__ import annotations

import shutil

import pytest

from ssl3d.data import store
from ssl3d.data.preparation import sizing
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.source_files import run_prepare as run


def test_the_estimated_size_is_the_written_size(tmp_path, capsys):
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


def test_a_single_case_is_one(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source", count=1, unlabelled=0)
    run("msd", source, tmp_path / "out", "--dry-run")
    assert ": 1 case, channels" in capsys.readouterr().out


def test_a_dry_run_lists_all_problems(tmp_path, capsys):
    source = files.write_msd(tmp_path / "source")
    (source / "imagesTr/case_01.nii.gz").write_bytes(b"")
    (source / "labelsTr/case_02.nii.gz").unlink()
    with pytest.raises(UserError, match="2 cases"):
        run("msd", source, tmp_path / "out", "--dry-run")
    text = capsys.readouterr().err
    assert "case_01.nii.gz: the file is empty" in text
    assert "case_02.nii.gz: no such file" in text


def test_a_dry_run_finds_unknown_label_values_and_invalid_ids(tmp_path, capsys):
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


def test_insufficient_disk_space_is_reported_before_writing(tmp_path, monkeypatch):
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
