"""The command line: options, exit status, one line on stderr."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from ssl3d import prepare
from ssl3d.errors import UserError


def write_scans(folder, count=3):
    folder.mkdir()
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 400, (12, 12, 12)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"scan{i}.nii.gz")
    return folder


def test_help(call_command):
    status, output, errors = call_command(prepare.main, "--help")
    assert status == 0
    assert "--on-error" in output
    assert errors == ""


def test_the_exit_status_tells_valid_from_invalid_cases(tmp_path, as_typed, call_command):
    source = write_scans(tmp_path / "scans")
    arguments = ["--layout=folder", f"--source={source}", "--recipe=mr", "--crop=no"]
    good = as_typed("ssl3d.prepare", *arguments, f"--output={tmp_path / 'good'}", "--workers=2")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1].startswith(f"{tmp_path / 'good'}: 3 cases (train 1, val 1")

    (source / "scan1.nii.gz").write_bytes(b"\x1f\x8bgarbage")
    arguments += [f"--output={tmp_path / 'bad'}", "--workers=1"]
    status, _, errors = call_command(prepare.main, *arguments)
    assert status == 2
    assert "Traceback" not in errors
    first, last = errors.splitlines()
    assert first.startswith("error: scan1: ")
    assert "scan1.nii.gz: damaged gzip data" in first
    assert last.startswith("error: one case cannot be prepared")

    status, output, _ = call_command(prepare.main, *arguments, "--on-error=skip")
    assert status == 0
    assert "1 left out, see report.csv" in output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "--layout"),
        (["--layout=zip"], "invalid choice: 'zip'"),
        (["--layout=folder", "--source=nowhere", "--output=x"], "nowhere: no such folder"),
        (["--wrong"], "--wrong"),
    ],
)
def test_usage_errors_are_one_line_with_status_2(call_command, arguments, what):
    status, _, errors = call_command(prepare.main, *arguments)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert what in line or "required" in line


def test_the_source_is_not_written_to(tmp_path):
    source = write_scans(tmp_path / "scans", 1)
    with pytest.raises(UserError, match="lies inside the source"):
        prepare.main(["--layout=folder", f"--source={source}", f"--output={source / 'out'}"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "add --recipe=ct or --recipe=mr"),
        (["--recipe=retina"], "--recipe=retina is for pictures"),
        (["--recipe=mr", "--spacing=1", "--size=8"], "exclude each other"),
        (["--recipe=mr", "--spacing=1,1"], "--spacing: give one or 3"),
        (["--recipe=mr", "--size=0"], "--size: give one or 3 positive"),
        (["--recipe=ct", "--window=100,-100"], "--window"),
        (["--recipe=mr", "--val=0.6", "--test=0.5"], "nothing to train on"),
        (["--recipe=mr", "--val=1.5"], "between 0 and 1"),
        (["--recipe=mr", "--workers=0"], "at least 1"),
        (["--recipe=mr", "--labels=nowhere"], "--labels=nowhere: no such folder"),
        (["--recipe=mr", "--classes=liver"], "--classes: write 0:background"),
        (["--recipe=mr", "--classes=0:background,1:"], "--classes: write 0:background"),
        (["--recipe=mr", "--classes=0:background,-1:liver"], "the label value -1"),
        (["--recipe=mr", "--classes=0:background,70000:liver"], "the label value 70000"),
        (["--recipe=mr", "--modalities=T1,"], "--modalities: give names"),
        (["--recipe=mr", "--spacing=fine"], "--spacing: give numbers"),
        (["--recipe=mr", "--spacing=nan"], "--spacing: give numbers"),
        (["--recipe=mr", "--spacing=inf"], "--spacing: give numbers"),
        (["--recipe=mr", "--val=some"], "--val: 'some' is not a number between 0 and 1"),
        (["--recipe=mr", "--seed=-1"], "--seed: '-1' is not a whole number of 0 to"),
        (["--recipe=mr", "--csv=grades.csv"], "--csv=grades.csv: no such file"),
    ],
)
def test_an_invalid_option_is_refused(tmp_path, options, what):
    source = write_scans(tmp_path / "scans", 1)
    with pytest.raises(UserError) as error:
        prepare.main(
            ["--layout=folder", f"--source={source}", f"--output={tmp_path / 'out'}", *options]
        )
    assert what in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_one_line(tmp_path):
    source = write_scans(tmp_path / "scans", 1)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="Not a directory"):
        prepare.main(
            ["--layout=folder", "--recipe=mr", f"--source={source}", f"--output={tmp_path / 'out'}"]
        )
    assert (tmp_path / "out").read_text() == "mine"
