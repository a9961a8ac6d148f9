"""Jobs in processes of their own, by several processes, stopped, failing, and killed."""

import functools
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ssl3d import cluster
from ssl3d.errors import RunError, UserError
from ssl3d.experiments.engine import grid, runs, worker
from ssl3d.experiments.engine.grid import ROOT, Cell, Job
from ssl3d.experiments.engine.study import StudyData
from tests.support import dask_cluster
from tests.support.small_study import done, rows, start, tiny

CELLS = 6 * 2 * 2
HERE = functools.partial(cluster.connect, "")


@pytest.mark.slow
def test_a_study_has_one_command_at_a_time(volumes, tmp_path):
    options = ["--methods=scratch", "--fractions=2", "--repetitions=1"]
    busy = start(tmp_path, volumes.path, *options, STAND_IN_SECONDS="60")
    while not list(tmp_path.glob(f"cells/*/{worker.JOB}")):
        assert busy.poll() is None, busy.communicate()
        time.sleep(0.05)
    second = start(tmp_path, volumes.path, *options)
    _, error = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"process {busy.pid} on" in error
    assert "runs this study; wait for it, or give another --output" in error
    busy.terminate()
    out, error = busy.communicate(timeout=60)
    assert busy.returncode == 1
    assert "run the same command again to continue" in out
    assert error == ""  # nothing of Dask


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_study_goes_on(volumes, tmp_path, number):
    options = ["--methods=scratch", "--fractions=2,all", "--repetitions=1"]
    process = start(tmp_path, volumes.path, *options, STAND_IN_SECONDS="1.5")
    while len(list(tmp_path.glob(f"cells/*/{worker.JOB}"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGTERM:
        assert "run the same command again to continue" in out
        assert len(rows(tmp_path)) == 1
    again = start(tmp_path, volumes.path, *options)
    out, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert len(rows(tmp_path)) == 2


def test_a_run_that_fails_stops_nothing_else(call, stand_in):
    stand_in.setenv("STAND_IN_FAILS", "rpl3d-finetune-2-r1")
    with pytest.raises(RunError, match=r"1 of the runs failed.*rpl3d-finetune-2-r1.*no luck"):
        call()
    assert len(rows(call.output)) == CELLS - 1
    assert "Not complete: 1 of" in (call.output / "report.html").read_text()
    stand_in.delenv("STAND_IN_FAILS")
    assert call() == 0
    assert len(rows(call.output)) == CELLS


def test_a_pretraining_that_fails_takes_its_cells_along(call, stand_in):
    stand_in.setenv("STAND_IN_FAILS", "pretraining/rpl3d")
    with pytest.raises(RunError, match="5 of the runs failed"):
        call()
    assert len(rows(call.output)) == CELLS - 4


def test_an_input_error_of_a_run_is_the_persons(stand_in, tmp_path):
    def launch(output, name, log):
        code = "import sys; print('error: no such scan; mend it'); sys.exit(2)"
        return subprocess.Popen([sys.executable, "-c", code], stdout=log, stdin=subprocess.PIPE)

    stand_in.setattr(runs, "launch", launch)
    with pytest.raises(UserError, match=r"^no such scan; mend it \(cells/a\)$"):
        runs.work(tmp_path, [Job("cells/a", "segment3d", "", {}, {})], HERE)


def test_runs_begin_in_the_order_of_the_grid(stand_in, tmp_path):
    """So that a study that is stopped early compares all methods, on as many repetitions."""
    begun = []

    def launch(output, name, log):
        begun.append(name)
        # Longer than a message takes.
        command = f"sleep 0.05; touch {output / name / runs.RESULT}"
        return subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE)

    stand_in.setattr(runs, "launch", launch)
    encoders = [Job(f"pretraining/e{n}", "rpl3d", "", {}, {}) for n in range(6)]
    jobs = [
        Job(f"cells/{method}-r{n}", "segment3d", "", {}, {}, encoders[n % 6] if encoded else None)
        for n in range(12)
        for method, encoded in (("scratch", False), ("double", False), ("rpl3d", True))
    ]
    runs.work(tmp_path, jobs, functools.partial(cluster.connect, "", 2))
    cells = [name for name in begun if name.startswith("cells")]
    numbers = [[job.name for job in jobs].index(name) for name in cells]
    assert sorted(numbers) == list(range(len(jobs)))
    # A pretraining takes a while, and each worker has a run in advance.
    assert max(number - place for place, number in enumerate(numbers)) <= 12


def test_a_run_that_the_system_ends_goes_on(stand_in, tmp_path):
    """As before the time of a SLURM job is over: not a failure, but a run to be resumed."""
    begun = []

    def launch(output, name, log):
        begun.append(name)
        if len(begun) == 1:
            code = f"raise SystemExit({runs.STOPPED})"
        else:
            code = f"import pathlib; pathlib.Path({str(output / name / runs.RESULT)!r}).touch()"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)

    stand_in.setattr(runs, "launch", launch)
    runs.work(tmp_path, [Job("cells/a", "segment3d", "", {}, {})], HERE)
    assert begun == ["cells/a", "cells/a"]


@pytest.mark.slow
def test_a_study_on_a_cluster(volumes, tmp_path):
    """Cells of different hosts at once, after one pretraining; stopped, and gone on with."""
    output = tmp_path / "out"
    options = ["--methods=scratch,rpl3d", "--fractions=2", "--repetitions=2"]
    preload = ["--preload=tests.support.small_study"]
    with dask_cluster.started(tmp_path / "cluster", workers=0, STAND_IN_SECONDS="8") as cluster:
        options.append(f"--scheduler={cluster.address}")
        busy = start(output, volumes.path, *options)
        assert next(busy.stdout) == f"{tiny().title}\n"
        assert "4 cells, 0 finished" in next(busy.stdout)
        assert "waiting for the Dask workers" in next(busy.stdout)
        cluster.add_worker(*preload)
        cluster.add_worker(*preload)
        # Two cells, or one and the pretraining: it depends on who comes first.
        while len(list(output.glob(f"*/*/{worker.JOB}"))) < 2:
            assert busy.poll() is None, busy.communicate()
            time.sleep(0.05)
        busy.terminate()
        out, error = busy.communicate(timeout=20)
        assert (busy.returncode, error) == (1, "")
        assert "run the same command again to continue" in out
        assert not done(output)  # ended at once
        again = start(output, volumes.path, *options)
        out, error = again.communicate(timeout=120)
        assert (again.returncode, error) == (0, "")
        assert [f"[{number} of 4] " in out for number in range(1, 5)] == [True] * 4
        assert len(rows(output)) == 4
        assert sum(done(output).values()) == 5
        assert set(done(output).values()) == {1}


CODE = """
import functools, pathlib, sys
from ssl3d.experiments.engine import runs
from ssl3d.experiments.engine.grid import Job
from ssl3d import cluster
job = Job(*{about!r}, columns={columns!r})
runs.work(pathlib.Path(sys.argv[1]), [job], functools.partial(cluster.connect, sys.argv[2]))
"""


@pytest.fixture
def long_job(volumes):
    """A cell of seconds, and the code that runs it in the folder and on the cluster it is given."""
    more = {"checkpoint_every": 2, "log_every": 1, "steps": 150, "validate_every": 50}
    study = tiny(finetuning=dict(tiny().finetuning) | more)
    (job,) = grid.jobs(StudyData(study, volumes, volumes), [Cell("scratch", "random", "2", 1)])
    about = job.name, job.config, job.argument, dict(job.overrides), job.row
    return job.name, CODE.format(about=about, columns=tuple(map(tuple, study.columns)))


def begin(code, output, scheduler=""):
    """Starts a job's code; returns once it has done some steps."""
    output.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", code, str(output), scheduler], cwd=ROOT)
    while not any(
        len(file.read_text().splitlines()) > 15 for file in output.glob("*/*/run/metrics.jsonl")
    ):
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to compile each run
def test_a_killed_cell_goes_on_from_its_checkpoint(long_job, tmp_path):
    """The training itself, killed in the middle: two pieces make the same run as one."""
    name, code = long_job
    first = begin(code, tmp_path)
    first.kill()
    first.wait()
    subprocess.run([sys.executable, "-c", code, str(tmp_path), ""], check=True, cwd=ROOT)
    log = (tmp_path / name / runs.LOG).read_text()
    assert "stopped by SIGTERM at step" in log
    assert "going on at step" in log
    result = json.loads((tmp_path / name / worker.RESULT).read_text())
    assert [step for step, _ in result["curve"]] == list(range(0, 151, 50))
    assert result["row"]["dice"] is not None
    assert not (tmp_path / name / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cell_goes_on_elsewhere_when_its_dask_worker_is_killed(long_job, tmp_path):
    """With the scores of the undisturbed cell."""
    name, code = long_job
    with dask_cluster.started(tmp_path / "cluster") as cluster:
        process = begin(code, tmp_path / "out", cluster.address)
        holder = json.loads((tmp_path / "out" / name / "run" / ".lock.json").read_text())
        parent = psutil.Process(holder["process"]).ppid()
        (own,) = (own for own in cluster.workers if own.pid == parent)
        own.kill()
        assert process.wait() == 0
    log = (tmp_path / "out" / name / runs.LOG).read_text()
    assert "stopped by SIGTERM at step" in log
    assert "going on at step" in log
    assert begin(code, tmp_path / "whole").wait() == 0
    found, wanted = (
        json.loads((tmp_path / folder / name / worker.RESULT).read_text())
        for folder in ("out", "whole")
    )
    assert (found["curve"], found["cases"]) == (wanted["curve"], wanted["cases"])
    assert found["row"]["seconds"] > 0
