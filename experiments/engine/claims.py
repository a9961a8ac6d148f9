"""Distribution of jobs over processes that share a folder: no server, no job done twice.

A job's folder holds `claim.0`, `claim.1`, ...; the latest belongs to the process at work. A claim
is made by an exclusive creation, in which only one process succeeds. Its modification time is the
heartbeat. The next number follows a claim that was given back, whose process is dead, or whose
heartbeat has stopped. No claim is ever removed: two processes that find the same stale claim cannot
take it away from each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ssl3d.atomic import atomic_write

# Seconds between two heartbeats, and without one until the process counts as dead. A network
# folder may show changes a minute late.
BEAT = 20.0
STALE = 300.0
# Seconds between two looks at the work of other processes.
LOOK = 2.0


class Claim(NamedTuple):
    """The right to do a job."""

    path: Path
    spent: float  # seconds that earlier processes worked on the job


def take(folder: Path) -> Claim | None:
    """Claims the job of `folder`; None if another process is at work on it."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(folder.glob("claim.*"), key=_number)
    if earlier and not _is_over(earlier[-1]):
        return None
    path = folder / f"claim.{len(earlier)}"
    about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    try:
        with path.open("x") as file:
            json.dump(about, file)
    except FileExistsError:
        return None
    return Claim(path, sum(map(_seconds, earlier)))


def is_lost(claim: Claim) -> bool:
    """Whether another process has taken over, after this one was suspended (a laptop asleep)."""
    return claim.path.with_name(f"claim.{_number(claim.path) + 1}").exists()


def give_back(claim: Claim) -> None:
    """Frees the job at once; the time spent on it stays on record."""
    about = _read(claim.path) | {"given_back": time.time()}
    with atomic_write(claim.path) as partial:
        partial.write_text(json.dumps(about))


@contextlib.contextmanager
def kept_alive(
    claim: Claim, lose: Callable[[], None] = lambda: None, beat: float = BEAT
) -> Iterator[None]:
    """Beats during the block, and gives the claim back after it.

    Calls `lose` once, from another thread, if another process takes over.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(beat):
            # A network file system that fails for a moment costs a beat, and not the claim.
            with contextlib.suppress(OSError):
                if is_lost(claim):
                    lose()
                    return
                os.utime(claim.path)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        give_back(claim)


def make_once(file: Path, folder: Path, make: Callable[[], Any]) -> None:
    """Has one process write a missing file, by `make`, with its claims in `folder`."""
    told = False
    while not file.exists():
        claim = take(folder)
        if claim:
            with kept_alive(claim):
                if not file.exists():  # written between the look and the claim
                    make()
        else:
            if not told:
                print(f"waiting for another process to write {file.name}", flush=True)
                told = True
            time.sleep(LOOK)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _read(path: Path) -> dict[str, Any]:
    """The content of a claim; empty while its process has not written it yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _is_over(path: Path) -> bool:
    about = _read(path)
    if "given_back" in about:
        return True
    if about.get("host") == socket.gethostname() and not _lives(about["pid"]):
        return True
    return _now(path.parent) - path.stat().st_mtime > STALE


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be another user's
    return True


def _now(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may not be this host's."""
    probe = folder / f".now.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    return now


def _seconds(path: Path) -> float:
    about = _read(path)
    end = about.get("given_back", path.stat().st_mtime)
    return max(end - about.get("started", end), 0.0)
