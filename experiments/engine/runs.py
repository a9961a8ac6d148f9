"""Execution of a grid's runs on a Dask cluster, each in a process of its own.

A run is a future, submitted once its pretraining is finished: those that wait for nothing stand in
Dask's queue in the order of the grid, whichever are ready first. A Dask worker, without JAX, starts
`experiments.engine.worker` and waits for it. When the Dask worker dies, the run ends with a
checkpoint, from which it goes on elsewhere.
"""

import contextlib
import json
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ssl3d import cluster, processes
from ssl3d.atomic import write_json
from ssl3d.errors import RunError, UserError

if TYPE_CHECKING:
    from distributed import Future

    from ssl3d.experiments.engine.grid import Job

Connect = Callable[[], contextlib.AbstractContextManager[Any]]  # `cluster.connect` to a client
JOB, RESULT, LOG = "job.json", "result.json", "log.txt"
STOPPED = 3  # exit status of an interrupted run, which can be resumed


def work(
    output: Path,
    jobs: Sequence["Job"],
    connect: Connect,
    after: Callable[[], None] = lambda: None,
    grace: float = processes.GRACE,
) -> None:
    """Runs every unfinished job after its pretraining, and calls `after` when one is finished.

    Stopped, it gives the jobs `grace` seconds to save their work. Raises `UserError` for an input
    error of a job, `RunError` where jobs failed and the others are done, and `processes.Stopped`.
    """
    if all(_is_done(output, job.name) for job in jobs):
        return
    # A pretraining has the number of the first job that needs it.
    numbers: dict[str, int] = {}
    futures: dict[str, Future] = {}
    waiting: dict[str, list[Job]] = {}  # for a pretraining
    failed: dict[str, str] = {}
    study = uuid.uuid4().hex  # this call, in keys, events and processes

    def announce(event: tuple[float, str]) -> None:
        _, name = event
        print(f"[{numbers[name]} of {len(jobs)}] {name}", flush=True)

    def submit(job: "Job", number: int) -> "list[Future]":
        """The future of an unfinished job or, once, of the pretraining that it waits for."""
        if job.name in futures or _is_done(output, job.name):
            return []
        numbers.setdefault(job.name, number)
        if job.needs and not _is_done(output, job.needs.name):
            waiting.setdefault(job.needs.name, []).append(job)
            return submit(job.needs, number)
        about = {"needs": job.needs and job.needs.name, "command": job.command}
        run = study, output, json.loads(json.dumps(vars(job) | about))
        # One prefix: Dask queues the many tasks of a group, and orders those in its queue alone.
        key = f"run-{job.name}-{study}"
        futures[job.name] = client.submit(supervise, *run, key=key, priority=-number)
        return [futures[job.name]]

    with processes.stopping(), connect() as client:
        from distributed import as_completed

        client.subscribe_topic(study, announce)
        try:
            running = as_completed(
                [run for number, job in enumerate(jobs, 1) for run in submit(job, number)]
            )
            for future in running:
                name = future.key.removeprefix("run-").removesuffix(f"-{study}")
                ready = waiting.pop(name, [])
                try:
                    cluster.result(future)
                    cluster.wait_to_see(output / name / RESULT)
                    after()
                except (RunError, BrokenExecutor) as error:
                    reason = str(error) or f"{name}: the Dask workers that ran it were killed"
                    print(reason, flush=True)
                    failed |= dict.fromkeys([name, *(job.name for job in ready)], reason)
                    continue
                running.update([run for job in ready for run in submit(job, numbers[job.name])])
        except BaseException:
            with contextlib.suppress(Exception):  # the scheduler may be what has failed
                client.cancel(list(futures.values()))
                client.run(processes.end, study, grace, on_error="ignore")
            raise
    if failed:
        raise RunError(
            f"{len(failed)} of the runs failed, the first: {next(iter(failed.values()))}; the "
            "report omits them; run the same command again to retry them"
        )


def _is_done(output: Path, name: str) -> bool:
    return (output / name / RESULT).exists()


def supervise(study: str, output: Path, job: dict[str, Any]) -> None:
    """Runs a job (content of job.json) in a process, on a Dask worker.

    Raises `RunError` where the run failed, `UserError` for an input error of the run or an output
    that the cluster does not share.
    """
    from distributed import Reschedule, get_worker

    name, folder = job["name"], output / job["name"]
    if _is_done(output, name):
        return
    if not output.is_dir():
        raise UserError(f"{output}: not on {socket.gethostname()}; give a shared --output")
    get_worker().log_event(study, name)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"spent": _spent(folder), "launched": time.time()}
    write_json(folder / JOB, job | about)
    with (folder / LOG).open("a") as log:
        status = processes.watch(launch(output, name, log), study)
    if _is_done(output, name):
        return
    if status == STOPPED:  # by the system, which is about to end this Dask worker too
        raise Reschedule
    reason = last_words(folder)
    if status == 2:
        raise UserError(f"{reason} ({name})")
    raise RunError(f"{name}: failed with status {status}: {reason} (see {folder / LOG})")


def last_words(folder: Path) -> str:
    """The last message of a run."""
    log = folder / LOG
    return processes.last_line(log.read_text(errors="replace") if log.exists() else "")


def _spent(folder: Path) -> float:
    """Seconds that earlier processes worked on a job, each until its last word."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((folder / JOB).read_text())
        last = (folder / LOG).stat().st_mtime
        return before["spent"] + max(last - before["launched"], 0.0)
    return 0.0


def launch(output: Path, name: str, log: TextIO) -> subprocess.Popen:
    """Starts the process of a run."""
    module = "ssl3d.experiments.engine.worker"
    return processes.start(module, name, output, log, cluster.environment(), cluster.cores())
