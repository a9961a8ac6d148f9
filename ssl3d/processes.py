"""Processes that a command starts and ends, and locks that tell its processes from one another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TextIO

import filelock

from ssl3d import documents
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError

_LOCK, _HOLDER = ".lock", ".lock.json"
# Seconds for a process that was asked to end to save its work.
GRACE = 60.0
# What this process watches, by group; None: the group was ended.
_watched: dict[str, set[subprocess.Popen] | None] = {}


def last_line(text: str) -> str:
    """The last line of what a process printed, which tells its error."""
    *_, last = text.strip().splitlines() or ["no message"]
    return last.removeprefix("error: ")


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; its work can be resumed."""


@contextlib.contextmanager
def stopping() -> Iterator[None]:
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


def start(
    module: str,
    argument: str,
    folder: Path,
    log: TextIO,
    environment: dict[str, str],
    cores: Collection[int] = (),
) -> subprocess.Popen:
    """Starts `python -m MODULE ARGUMENT` in a folder, with the repository on its path.

    Its standard input closes when this process ends, however it ends. It runs on `cores` alone, if
    there are any.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", module, argument],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": path} | environment,
        # Ctrl-C reaches this process alone, which passes it on once.
        start_new_session=True,
    )
    if cores:  # at once: its threads will have the same
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def watch(process: subprocess.Popen, group: str) -> int:
    """The exit status of a process, which `end` may end before."""
    watched = _watched.setdefault(group, set())
    if watched is None:
        process.terminate()
        return process.wait()
    watched.add(process)
    status = process.wait()
    watched.discard(process)
    return status


async def end(group: str, grace: float = GRACE) -> None:
    """Ends the watched processes of a group, with seconds to save, and those still to come."""
    processes = list(_watched.get(group) or ())
    _watched[group] = None
    for process in processes:
        process.terminate()
    latest = time.monotonic() + grace
    while any(process.poll() is None for process in processes) and time.monotonic() < latest:
        await asyncio.sleep(0.1)
    for process in processes:
        process.kill()


@contextlib.contextmanager
def claimed(folder: Path, option: str, work: str) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be.

    The system releases the lock of a process that ends, however it ends.

    Args:
      option: the command's option that names the folder.
      work: what the holder does, as in "trains here".

    Raises:
      UserError: another process, which is named, holds it; or it cannot be written.
    """
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        with atomic_write(folder / _HOLDER) as partial:
            partial.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    except filelock.Timeout:
        holder = _holder(folder)
        raise UserError(
            f"{folder}: {holder} {work}; wait for it, or give another {option}"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); give another {option}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / _HOLDER).unlink(missing_ok=True)
            lock.release()


def _holder(folder: Path) -> str:
    try:
        found = documents.read_object(folder / _HOLDER, "")
        return f"process {found['process']} on {found['host']}"
    except (UserError, KeyError):  # it has just begun or ended
        return "another process"
