"""Parallel processing on a Dask cluster; on this machine's processes: test_hostile_input.py."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from ssl3d.cli import disk_errors
from ssl3d.data.preparation.case import prepare_case
from ssl3d.data.preparation.workers import in_parallel
from ssl3d.errors import UserError
from tests.support import dask_cluster
from tests.support import source_files as files
from tests.support.dying import die_for
from tests.support.same_bytes import assert_same_bytes
from tests.support.source_files import run_prepare as run


def test_a_worker_killed_in_mid_preparation_changes_nothing(tmp_path):
    source = files.write_msd(tmp_path / "source", count=60)
    # As typed: the workers have another working folder.
    command = [sys.executable, "-m", "ssl3d.prepare", "--layout=msd", "--output=out"]
    with dask_cluster.started(tmp_path / "cluster") as cluster:
        command += [f"--source={source}", f"--scheduler={cluster.address}"]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(list(tmp_path.glob("out/images/case*"))) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        cluster.workers[0].kill()
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "61 cases" in out
    assert "distributed" not in error
    assert "Traceback" not in error
    run("msd", source, tmp_path / "whole")
    assert_same_bytes(tmp_path / "whole", tmp_path / "out")


@pytest.mark.slow  # how often a case is tried depends on when Dask notices a death
def test_a_case_that_kills_its_workers_fails_alone(tmp_path):
    calls = [(tmp_path / f"{name}.nii",) for name in ("a", "kill", "b", "c")]
    allowed = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    with dask_cluster.started(tmp_path / "cluster", workers=4, **allowed) as cluster:
        found = dict(in_parallel(die_for, calls, cluster.address, "dying"))
    assert isinstance(found[1], UserError)
    assert "kill.nii: the process at work on it was killed" in str(found[1])
    assert [found[index] for index in (0, 2, 3)] == ["a", "b", "c"]


@pytest.mark.slow
def test_workers_without_the_project_or_without_a_scheduler_are_one_line(tmp_path):
    calls = [(tmp_path / "a.nii",)]
    with dask_cluster.started(tmp_path / "cluster", PYTHONPATH="") as cluster:
        with pytest.raises(UserError, match="with the repository in PYTHONPATH"):
            list(in_parallel(die_for, calls, cluster.address, "dying"))
        cluster.add_worker("--nthreads=2")
        time.sleep(5)
        with pytest.raises(UserError, match="start them with --nthreads 1"):
            list(in_parallel(die_for, calls, cluster.address, "dying"))


def test_an_output_that_a_host_does_not_share_stops_the_preparation(tmp_path):
    """Otherwise each host would fill a folder of its own."""
    settings = SimpleNamespace(output=tmp_path / "elsewhere")
    with (
        pytest.raises(UserError, match=r"elsewhere: not on .*, which must share it"),
        disk_errors(),
    ):
        list(in_parallel(prepare_case, [(None, settings)], 1, "preparing"))
