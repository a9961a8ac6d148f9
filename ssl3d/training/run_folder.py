"""The folder of a run: one run at a time, nothing missing, and one line when the disk fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from ssl3d import documents, processes
from ssl3d.errors import RunError, UserError
from ssl3d.training import run_log

CHECKPOINTS, CONFIG, METRICS = "checkpoints", "config.json", "metrics.jsonl"


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if need be; in the first process only.

    The system releases the lock of a process that ends, however it ends.

    Raises:
      UserError: another process, which is named, trains in this folder; or it cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    with processes.claimed(workdir, "--workdir", "trains here"):
        yield


def check_complete(workdir: Path) -> str:
    """Refuses the remains of a run, which would start silently from nothing.

    Returns:
      What to say of a run that was killed before its first checkpoint; "" for any other.

    Raises:
      UserError: config or checkpoints are missing while metrics exist, or the reverse.
    """
    lines = run_log.read_metrics(workdir)
    checkpoints = workdir / CHECKPOINTS
    if not lines and not checkpoints.exists():
        return ""
    last = max((line["step"] for line in lines), default=0)
    held = f"{METRICS} reaches step {last}" if lines else f"{CHECKPOINTS} exists"
    remedy = "restore it, or give another --workdir to start anew"
    for name in (CONFIG, CHECKPOINTS):
        if not (workdir / name).exists():
            raise UserError(f"{workdir}: {held}, but {name} is missing; {remedy}")
    try:
        every = int(documents.read_object(workdir / CONFIG, "")["checkpoint_every"])
    except (UserError, *documents.MALFORMED):
        return ""  # a damaged config is refused where it is compared
    if any(_is_whole(path) for path in checkpoints.glob("*")):
        if not lines:
            raise UserError(f"{workdir}: {held}, but {METRICS} is missing or empty; {remedy}")
        return ""
    # The first one is complete before the second is begun.
    if last > 2 * every:
        raise UserError(f"{workdir}: {held}, but {CHECKPOINTS} is empty; {remedy}")
    return f"{held}, before the first checkpoint was complete; starting anew" if last else ""


@contextlib.contextmanager
def failures(workdir: Path) -> Iterator[None]:
    """Says in a `RunError`, or in place of an `OSError`, from where a run that fails can go on."""
    try:
        yield
    except RunError as error:
        raise type(error)(f"{error}; {_last_checkpoint(workdir)}") from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        where = error.filename or workdir
        raise RunError(f"{where}: {reason}; {_last_checkpoint(workdir)}") from None


def _last_checkpoint(workdir: Path) -> str:
    """Which checkpoint a run can go on from, and how, as a phrase."""
    with contextlib.suppress(OSError):
        steps = [int(path.name) for path in (workdir / CHECKPOINTS).iterdir() if _is_whole(path)]
        if steps:
            return (
                f"the last checkpoint is that of step {max(steps)}, from which a new start goes on"
            )
    return "there is no checkpoint yet"


def _is_whole(path: Path) -> bool:
    # Unfinished ones have another name until they are complete.
    return path.name.isdecimal() and path.is_dir()
