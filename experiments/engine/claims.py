"""Distribution of jobs over processes that share a folder: no server, no job done twice.

A job's folder holds `claim.0`, `claim.1`, ..., each created exclusively by one process; the latest
belongs to the process at work, and its modification time is the heartbeat. The next one follows
when it is given back, its process is dead, or its heartbeat has stopped. No claim is ever removed:
two processes that find the same stale claim cannot take it away from each other.
"""

import contextlib
import json
import math
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
LOOK = 2.0  # seconds between two looks at the work of other processes


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
    # A claim ends with its last change, a heartbeat or its return.
    spent = (file.stat().st_mtime - _read(file).get("started", math.inf) for file in earlier)
    return Claim(path, sum(max(seconds, 0.0) for seconds in spent))


def is_lost(claim: Claim) -> bool:
    """Whether another process has taken over from this one (a laptop asleep)."""
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
    """Beats in the block, then gives the claim back; calls `lose` if another process takes over."""
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
        if claim := take(folder):
            with kept_alive(claim):
                if not file.exists():  # written between the look and the claim
                    make()
            continue
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
    if about.get("host") == socket.gethostname():
        with contextlib.suppress(PermissionError):  # a process of another user
            try:
                os.kill(about["pid"], 0)
            except ProcessLookupError:
                return True
    # By the clock that stamps the folder's files, which may not be this host's.
    process = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    clock = path.with_name(f".now.{process}")
    clock.touch()
    now = clock.stat().st_mtime
    clock.unlink(missing_ok=True)
    return now - path.stat().st_mtime > STALE
