"""The training command as a user types it."""

import functools
import json
import shutil

import pytest

from ssl3d import main
from ssl3d.training import run_log


def one_line(text):
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


@pytest.fixture
def call(call_command):
    return functools.partial(call_command, main.main)


def test_help_as_typed(as_typed):
    done = as_typed("ssl3d.main", "--help")
    assert done.returncode == 0
    assert "--stop_at" in done.stdout
    assert "--config=FILE[:DATASET[,VARIANT]]" in done.stdout
    assert done.stderr == ""


def test_a_run_as_typed(tiny_options, pictures, as_typed, tmp_path):
    workdir = tmp_path / "run"
    options = tiny_options("rotation2d", pictures.path)
    done = as_typed("ssl3d.main", *options, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal, so no progress bar; and no library's warnings
    lines = done.stdout.splitlines()
    assert lines[0].startswith("rotation2d_folder: 8 training and 4 validation cases of tiny 2D")
    last = run_log.read_metrics(workdir)[-1]
    assert lines[-1].startswith(
        f"rotation2d_folder: 3 steps, validation {run_log.describe(last, 'accuracy')}, untrained"
    )
    assert lines[-1].endswith(f"encoder in {workdir / 'encoder'}")
    assert (workdir / "encoder" / "encoder.safetensors").exists()


def test_an_unknown_key_as_typed(as_typed, tmp_path):
    options = ["--config=configs/rpl3d.py", "--config.stepz=5"]
    done = as_typed("ssl3d.main", *options, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "the nearest is --config.steps" in one_line(done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_data_that_are_not_there(call, tmp_path):
    status, _, said = call("--config=configs/rpl3d.py:brats", f"--workdir={tmp_path}")
    assert status == 2
    assert "config.data.path is empty: prepare the brats data with" in one_line(said)
    status, _, said = call(
        "--config=configs/rpl3d.py:brats",
        f"--config.data.path={tmp_path / 'nowhere'}",
        f"--workdir={tmp_path}",
    )
    assert status == 2
    assert f"{tmp_path / 'nowhere'}: no prepared data set here" in one_line(said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("dataset.json", "cannot be read"),
        ("images/case_09.npy", "images/case_09.npy: 100 bytes, "),
    ],
)
def test_truncated_files(call, tiny_options, volumes, tmp_path, file, message):
    folder = tmp_path / "data"
    shutil.copytree(volumes.path, folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    status, _, said = call(*tiny_options("rpl3d", folder), f"--workdir={tmp_path / 'run'}")
    assert status == 2
    assert message in one_line(said)
    assert str(folder / file) in said


def test_a_truncated_image_found_on_the_way(call, tiny_options, pictures, tmp_path):
    """The reader threads' error reaches the person as it is."""
    folder = tmp_path / "data"
    shutil.copytree(pictures.path, folder)
    sick = folder / "images" / "case_03.npy"
    sick.write_bytes(sick.read_bytes()[:200])
    status, _, said = call(*tiny_options("rpl2d", folder), f"--workdir={tmp_path / 'run'}")
    assert status == 2
    assert f"{sick}: 200 bytes, " in one_line(said)


def test_volumes_where_there_are_pictures(call, tiny_options, pictures, tmp_path):
    status, _, said = call(*tiny_options("rpl3d", pictures.path), f"--workdir={tmp_path}")
    assert status == 2
    assert "holds pictures (2D); a 3D config needs volumes" in one_line(said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.batch_size=0"], "config.batch_size=0: must be"),
        (["--config.mesh.space=3"], "config.mesh.space=3 does not divide the 1 devices"),
        (["--stop_at=-1"], "--stop_at=-1"),
        (["--stop_at=soon"], "--stop_at"),
        (["--config.task.name=chess"], "config.task.name='chess' does not exist"),
        (["--config.data.crop=(24,24,24)"], "config.data.crop=(24, 24, 24): must be 2 whole"),
        (["--config.task.intensity=1.5"], "config.task.intensity=1.5: must be between 0 and 1"),
        (["--config.data.train_splits=('tests',)"], "no split 'tests'"),
    ],
)
def test_wrong_values(call, tiny_options, pictures, tmp_path, options, message):
    status, _, said = call(
        *tiny_options("rpl2d", pictures.path), *options, f"--workdir={tmp_path / 'run'}"
    )
    assert status == 2
    assert message in one_line(said)


def test_a_folder_that_cannot_be_written(call, tiny_options, pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, said = call(
        *tiny_options("rpl2d", pictures.path), f"--workdir={tmp_path / 'file' / 'run'}"
    )
    assert status == 2
    assert str(tmp_path / "file") in one_line(said)


def test_stopping_where_the_run_already_is(call, tiny_options, pictures, tmp_path):
    """A time-limited job that is started once more than needed has nothing to do, and says so."""
    options = [*tiny_options("rotation2d", pictures.path), f"--workdir={tmp_path / 'run'}"]
    assert call(*options, "--stop_at=2")[0] == 0
    status, said, _ = call(*options, "--stop_at=1")
    assert status == 0
    assert "at step 2 of 3" in said.splitlines()[-1]


def test_real_volumes_from_nifti_to_an_encoder(task04, call, tiny_options, tmp_path):
    """Prepare and pretrain on a dozen hippocampi."""
    from ssl3d import prepare

    few = tmp_path / "few"
    document = json.loads((task04 / "dataset.json").read_text())
    document |= {"training": document["training"][:12], "test": [], "numTraining": 12, "numTest": 0}
    for entry in document["training"]:
        for file in entry.values():
            (few / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(task04 / file, few / file)
    (few / "dataset.json").write_text(json.dumps(document))
    prepared = tmp_path / "prepared"
    assert prepare.main(["--layout=msd", f"--source={few}", f"--output={prepared}"]) in (0, None)
    options = [
        option.replace(":folder", ":hippocampus")
        for option in tiny_options("rpl3d", prepared)
        if not option.startswith("--config.data.crop")
    ]
    status, said, _ = call(*options, f"--workdir={tmp_path / 'run'}")
    assert status == 0
    assert "encoder in" in said.splitlines()[-1]
    description = json.loads((tmp_path / "run" / "encoder" / "encoder.json").read_text())
    assert description["modalities"] == ["MRI"]
