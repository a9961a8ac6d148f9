"""Runs the jobs of a grid, one after the other, together with whoever else works on the folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.engine import claims, worker
from experiments.engine.grid import Job
from experiments.engine.study_data import ROOT
from ssl3d.atomic import atomic_write
from ssl3d.errors import RunError, UserError

LOG = "log.txt"
# Seconds between two looks at whether the others are done with what is waited for.
LOOK = 2.0
# Seconds in which a run that was asked to end has written its checkpoint.
_GRACE = 60.0


class Stopped(Exception):
    """A signal asked this process to end; what is running goes on another time."""


def is_done(output: Path, job: Job) -> bool:
    """Whether the job's result is there."""
    return (output / job.name / worker.RESULT).exists()


def work(
    output: Path,
    jobs: Sequence[Job],
    columns: Sequence[Sequence[Any]],
    source: str = "",
    may_start: Callable[[Job], bool] = lambda job: True,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Does every job that is not done, and waits for those that others are doing.

    Args:
      output: the study's folder; each job has one in it.
      jobs: cells, in order; the pretraining that one needs is done first.
      columns: of the scores, for the cells.
      source: as in `Plan`.
      may_start: asked before each job of the run's own; false leaves it out (a budget is spent).

    Returns:
      What failed, a line each.

    Raises:
      UserError: what a job says of its input.
      Stopped: on SIGTERM or SIGINT.
    """
    failed: dict[str, str] = {}
    waiting = list(jobs)
    total, told = len(waiting), False
    with _signals() as stop:
        while waiting:
            if stop.wait(0):
                raise Stopped
            progress, rest = False, []
            for job in waiting:
                todo = job.needs if job.needs and not is_done(output, job.needs) else job
                if is_done(output, job):
                    progress = True
                    continue
                if todo.name in failed:
                    failed[job.name] = f"{job.name}: its pretraining failed"
                    progress = True
                    continue
                if not may_start(todo):
                    progress = True
                    continue
                claim = claims.take(output / todo.name)
                if claim is None:
                    rest.append(job)
                    continue
                progress, told = True, False
                if not is_done(output, todo):  # done between the look and the claim
                    say(f"[{total - len(waiting) + 1} of {total}] {todo.name}")
                    scored = [] if todo is job.needs else columns
                    reason = run(output, todo, claim, scored, source, stop)
                    if reason:
                        say(reason)
                        failed[todo.name] = reason
                else:
                    claims.give_back(claim)
                if job.name not in failed and not is_done(output, job):
                    rest.append(job)  # after its pretraining, or where somebody has taken over
                # The list is looked through again from its beginning, for what others have done.
                rest += waiting[waiting.index(job) + 1 :]
                break
            waiting = rest
            if not progress and waiting:
                if not told:
                    say(f"waiting for {len(waiting)} that other processes are doing")
                    told = True
                stop.wait(LOOK)
    return list(failed.values())


def run(
    output: Path,
    job: Job,
    claim: claims.Claim,
    columns: Sequence[Sequence[Any]],
    source: str,
    stop: _Stop,
) -> str:
    """Runs a claimed job to its end.

    Returns:
      A line that says why it failed; "" if it did not, or if another process has taken over.

    Raises:
      UserError: the job's own.
      Stopped: on a signal.
    """
    folder = output / job.name
    document = {
        "config": job.config,
        "argument": job.argument,
        "overrides": job.overrides,
        "columns": columns,
        "source": source,
        "row": job.row,
        "spent": claim.spent,
        "launched": time.time(),
        "command": job.command,
    }
    with atomic_write(folder / worker.JOB) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")
    with (folder / LOG).open("a") as log:
        process = launch(output, job, log)
        with claims.kept_alive(claim, process.terminate):
            while process.poll() is None:
                if stop.wait(0.2):
                    _end(process)
                    raise Stopped
    if is_done(output, job) or claims.is_lost(claim):
        return ""
    lines = (folder / LOG).read_text(errors="replace").strip().splitlines() or ["no message"]
    reason = lines[-1].removeprefix("error: ")
    if process.returncode == 2:
        raise UserError(f"{reason} ({job.name})")
    return f"{job.name}: failed with status {process.returncode}: {reason} (see {folder / LOG})"


def launch(output: Path, job: Job, log: Any) -> subprocess.Popen:
    """Starts the worker; its standard input ends when this process does."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.engine.worker", job.name],
        cwd=output,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": path},
        # Ctrl-C reaches this process alone, which passes it on once.
        start_new_session=True,
    )


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Stop:
    """Whether a signal has asked to end."""

    def __init__(self) -> None:
        self._asked = False

    def note(self, number: int, frame: Any) -> None:
        self._asked = True

    def wait(self, seconds: float) -> bool:
        """Waits, though not after a signal; whether there was one."""
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return self._asked


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {
        number: signal.signal(number, stop.note) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failures(failed: Sequence[str]) -> None:
    """Raises `RunError` where something failed."""
    if failed:
        raise RunError(
            f"{len(failed)} of the runs failed, the first: {failed[0]}; the report is without "
            "them; run the same command again to try them again"
        )
