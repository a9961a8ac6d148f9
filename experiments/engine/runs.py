"""Execution of a grid's jobs, one after the other, shared with other processes on the folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from experiments.engine import claims, worker
from experiments.engine.grid import ROOT, Job
from ssl3d.atomic import atomic_write
from ssl3d.errors import RunError, UserError

LOG = "log.txt"
# Seconds for a run that was asked to end to write its checkpoint.
_GRACE = 60.0


class Stopped(Exception):
    """A signal asked this process to end; the run in progress can be resumed."""


def work(
    output: Path, jobs: Sequence[Job], may_start: Callable[[Job], bool] = lambda job: True
) -> None:
    """Runs every unfinished job after its pretraining, and waits for those of other processes.

    A job that may not start (the budget is spent) is left out. Raises `UserError` for an input
    error of a job, `RunError` where jobs failed and the others are done, and `Stopped`.
    """
    failed: dict[str, str] = {}
    waiting, told = list(jobs), False
    with _stopping():
        while waiting:
            for job in list(waiting):
                todo = job.needs if job.needs and not _is_done(output, job.needs) else job
                if todo.name in failed:
                    failed[job.name] = f"{job.name}: its pretraining failed"
                    waiting.remove(job)
                elif _is_done(output, job) or not may_start(todo):
                    waiting.remove(job)
                elif claim := claims.take(output / todo.name):
                    place, told = len(jobs) - len(waiting) + 1, False
                    reason = _run(output, todo, claim, f"[{place} of {len(jobs)}] {todo.name}")
                    if reason:
                        print(reason, flush=True)
                        failed[todo.name] = reason
                    if todo is job and reason:
                        waiting.remove(job)
                    break  # other processes may have finished jobs: look from the beginning
            else:
                if waiting:
                    if not told:
                        print(f"waiting for {len(waiting)} runs of other processes", flush=True)
                        told = True
                    time.sleep(claims.LOOK)
    if failed:
        raise RunError(
            f"{len(failed)} of the runs failed, the first: {next(iter(failed.values()))}; the "
            "report omits them; run the same command again to retry them"
        )


def _is_done(output: Path, job: Job) -> bool:
    return (output / job.name / worker.RESULT).exists()


def _run(output: Path, job: Job, claim: claims.Claim, title: str) -> str:
    """Runs a claimed job; why it failed, or "" on success or if another process took over."""
    if _is_done(output, job):  # finished between the look and the claim
        claims.give_back(claim)
        return ""
    print(title, flush=True)
    folder = output / job.name
    about = {"spent": claim.spent, "launched": time.time(), "command": job.command}
    document = vars(job) | about | {"needs": job.needs and job.needs.name}
    with atomic_write(folder / worker.JOB) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")
    with (folder / LOG).open("a") as log:
        process = launch(output, job, log)
        with claims.kept_alive(claim, process.terminate):
            try:
                status = process.wait()
            except Stopped:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
                process.kill()
                process.wait()
                raise
    if _is_done(output, job) or claims.is_lost(claim):
        return ""
    *_, last = (folder / LOG).read_text(errors="replace").strip().splitlines() or ["no message"]
    reason = last.removeprefix("error: ")
    if status == 2:
        raise UserError(f"{reason} ({job.name})")
    return f"{job.name}: failed with status {status}: {reason} (see {folder / LOG})"


def launch(output: Path, job: Job, log: TextIO) -> subprocess.Popen:
    """Starts the worker; its standard input closes when this process ends."""
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


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Raises `Stopped` on the first SIGTERM or SIGINT, and ignores further ones in the block."""

    def stop(number: int, frame: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
