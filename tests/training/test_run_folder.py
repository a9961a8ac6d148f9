"""One run per folder, no start from remains, and one line when the disk fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl3d.errors import RunError, UserError
from ssl3d.training import run_folder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, pathlib
from ssl3d.training import run_folder
with run_folder.claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_by_the_name_of_the_first(holder, tmp_path):
    with (
        pytest.raises(UserError, match=rf"process {holder.pid} on \S+ trains here"),
        run_folder.claimed(tmp_path / "run"),
    ):
        pass


def test_the_lock_of_a_killed_run_is_no_obstacle(holder, tmp_path):
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    with run_folder.claimed(tmp_path / "run"):
        assert time.monotonic() < deadline
    with run_folder.claimed(tmp_path / "run"):  # and it is given back
        pass


def test_a_holder_that_cannot_be_read_is_another_process(holder, tmp_path):
    (tmp_path / "run" / ".lock.json").write_text("{")
    with (
        pytest.raises(UserError, match="another process trains here"),
        run_folder.claimed(tmp_path / "run"),
    ):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file.*cannot be written.*--workdir"),
        run_folder.claimed(tmp_path / "file" / "run"),
    ):
        pass


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it that reached step 50."""
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint_every": 10}))
    lines = [{"step": step, "split": "train", "loss": 1.0} for step in range(10, 60, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_whole_run_and_a_new_folder_are_complete(run, tmp_path_factory):
    assert run_folder.check_complete(run) == ""
    assert run_folder.check_complete(tmp_path_factory.mktemp("new")) == ""


@pytest.mark.parametrize("name", ["config.json", "checkpoints"])
def test_a_run_without_its_config_or_checkpoints_is_refused(run, name):
    (run / name).rename(run.parent / f"{run.name}-{name}")
    message = rf"reaches step 50, but {name} is missing.*--workdir"
    with pytest.raises(UserError, match=message):
        run_folder.check_complete(run)
    if name == "config.json":
        (run / "metrics.jsonl").unlink()
        with pytest.raises(UserError, match=r"checkpoints exists, but config\.json is missing"):
            run_folder.check_complete(run)


def test_a_run_whose_checkpoints_were_removed_is_refused(run):
    (run / "checkpoints" / "40").rmdir()
    with pytest.raises(UserError, match="reaches step 50, but checkpoints is empty"):
        run_folder.check_complete(run)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(run):
    (run / "checkpoints" / "40").rmdir()
    (run / "metrics.jsonl").write_text('{"step": 10, "split": "train", "loss": 1.0}\n')
    assert "reaches step 10, before the first checkpoint" in run_folder.check_complete(run)


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_text("")])
def test_a_run_without_its_metrics_is_refused(run, lost):
    lost(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"checkpoints exists, but metrics\.jsonl is missing"):
        run_folder.check_complete(run)


def test_a_failing_disk_is_one_line_with_the_last_checkpoint(run):
    (run / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir()  # unfinished
    with (
        pytest.raises(RunError, match=r"there: No space left.*checkpoint is that of step 40"),
        run_folder.failures(run),
    ):
        raise OSError(28, "No space left on device", "there")
    with (
        pytest.raises(RunError, match="loss nan; the last checkpoint is that of step 40"),
        run_folder.failures(run),
    ):
        raise RunError("loss nan")


def test_a_failure_without_a_checkpoint_names_none(tmp_path):
    for workdir in (tmp_path, tmp_path / "gone"):
        with (
            pytest.raises(RunError, match="loss nan; there is no checkpoint yet"),
            run_folder.failures(workdir),
        ):
            raise RunError("loss nan")


# Runs whose disk fails while they train, in processes of their own.

TRAIN = """
import pathlib, resource, sys
from ssl3d import cli
from ssl3d.training import loop
from tests.support.tiny_configs import tiny_config

def main(arguments):
    every = {"checkpoint_every": 1, "validate_every": 10**6, "log_every": 10}
    config = tiny_config("rpl2d", arguments[0], steps=100000, **every)
    if arguments[2] == "full":  # larger files cannot be written, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    loop.train(config, pathlib.Path(arguments[1]))

cli.run(main, at_once=True)
"""


@pytest.fixture
def train(pictures, tmp_path):
    """Starts a long run in tmp_path / "run"."""
    processes = []

    def start(disk=""):
        command = [sys.executable, "-c", TRAIN, str(pictures.path), str(tmp_path / "run"), disk]
        to_null = subprocess.DEVNULL
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=to_null, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ended(process):
    """The only line of a run that fails by itself."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    return error


def until_step(folder, step):
    deadline = time.monotonic() + 120
    while not any(int(p.name) >= step for p in folder.glob("checkpoints/*") if p.name.isdecimal()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "name", ["checkpoints", pytest.param("metrics.jsonl", marks=pytest.mark.slow)]
)
def test_what_is_removed_during_a_run_is_said_in_a_line(train, tmp_path, name):
    process = train()
    until_step(tmp_path / "run", 3)
    (tmp_path / "run" / name).rename(tmp_path / "moved")
    assert f"/run/{name}" in ended(process)


def test_a_disk_without_room_is_said_in_a_line(train):
    assert "there is no checkpoint yet" in ended(train("full"))
