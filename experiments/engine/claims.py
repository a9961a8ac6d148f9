"""Who does which job, agreed over a shared folder: no server, no job done twice.

A job's folder holds `claim.0`, `claim.1`, ...: the latest belongs to who is at work. A claim is
made by an exclusive creation, which one alone succeeds in, and kept alive by its time of change,
the heartbeat. One that is given back, or whose process is dead, or whose heart has stopped, is
followed by the next number; none is ever removed, so that two who find the same stale claim cannot
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

# Seconds between two heartbeats, and without one after which the process counts as dead: other
# hosts cannot ask for it, and a network folder may show changes a minute late.
BEAT = 20.0
STALE = 300.0


class Claim(NamedTuple):
    """A job that this process does.

    Attributes:
      path: of the claim's file.
      spent: seconds that earlier processes worked on the job.
    """

    path: Path
    spent: float


def take(folder: Path) -> Claim | None:
    """Claims the job of `folder`; None where another process is at it."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _claims(folder)
    if earlier and not _is_over(earlier[-1]):
        return None
    path = folder / f"claim.{len(earlier)}"
    about = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(handle, "w") as file:
        json.dump(about, file)
    return Claim(path, sum(_seconds(claim) for claim in earlier))


def is_lost(claim: Claim) -> bool:
    """Whether somebody thought this process dead (a laptop asleep) and has taken over."""
    return (claim.path.parent / f"claim.{_number(claim.path) + 1}").exists()


def give_back(claim: Claim) -> None:
    """Lets others have the job at once; what was spent on it stays known."""
    about = _read(claim.path) | {"given_back": time.time()}
    with atomic_write(claim.path) as partial:
        partial.write_text(json.dumps(about))


@contextlib.contextmanager
def kept_alive(claim: Claim, lose: Callable[[], None], beat: float = BEAT) -> Iterator[None]:
    """Beats while the block runs, and gives the claim back after it.

    Args:
      lose: called once, from another thread, if somebody else has taken over.
      beat: seconds between two beats.
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


def _claims(folder: Path) -> list[Path]:
    return sorted(folder.glob("claim.*"), key=_number)


def _number(path: Path) -> int:
    return int(path.suffix[1:])


def _read(path: Path) -> dict[str, Any]:
    """What a claim says; nothing where its maker has not come to write it yet."""
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
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
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
