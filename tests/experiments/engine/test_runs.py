"""Jobs in processes of their own, by several processes, stopped, failing, and killed."""

import functools
import json
import signal
import subprocess
import sys
import time

import pytest

from experiments.engine import grid, runs, worker
from experiments.engine.grid import ROOT, Cell, Job
from experiments.engine.study import StudyData
from ssl3d import cluster
from ssl3d.errors import RunError, UserError
from tests.support.small_study import rows, start, tiny

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


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine takes minutes to compile each run
def test_a_killed_cell_goes_on_from_its_checkpoint(volumes, tmp_path):
    """The training itself, killed in the middle: two pieces make the same run as one."""
    more = {"checkpoint_every": 2, "log_every": 1, "steps": 300, "validate_every": 100}
    study = tiny(finetuning=dict(tiny().finetuning) | more)
    (job,) = grid.jobs(StudyData(study, volumes, volumes), [Cell("scratch", "random", "2", 1)])
    about = job.name, job.config, job.argument, dict(job.overrides), job.row
    code = f"""
import functools, pathlib
from experiments.engine import runs
from experiments.engine.grid import Job
from ssl3d import cluster
job = Job(*{about!r}, columns={tuple(map(tuple, study.columns))!r})
runs.work(pathlib.Path({str(tmp_path)!r}), [job], functools.partial(cluster.connect, ""))
"""
    first = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    metrics = tmp_path / job.name / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 15:
        assert first.poll() is None
    first.kill()
    first.wait()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    log = (tmp_path / job.name / runs.LOG).read_text()
    assert "stopped by SIGTERM at step" in log
    assert "going on at step" in log
    result = json.loads((tmp_path / job.name / worker.RESULT).read_text())
    assert [step for step, _ in result["curve"]] == list(range(0, 301, 100))
    assert result["row"]["dice"] is not None
    assert not (tmp_path / job.name / "run" / "checkpoints").exists()
