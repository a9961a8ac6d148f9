"""Damaged files for a reader: what counts as a fault, and the search for one.

A damaged file is read, or ends in a `UserError` of one line that names the file; anything else is
a fault: another exception, more memory than `ROOM`, or more time than `SECONDS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck

from ssl3d.errors import UserError
from tests.support.mutations import mutated

# Bytes that a case may add to the address space of the process, and seconds that it may take.
ROOM, SECONDS = 3 << 30, 20.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader with a valid file.

    Attributes:
      name: for the table.
      file: the file to damage.
      load: reads it, from its path.
      content: what is damaged, before `pack`.
      pack: from the damaged content to the file's bytes: compression, checksums.
      share: of the usual number of cases, for slow loaders.
    """

    name: str
    file: Path
    load: Callable[[Path], object]
    content: bytes
    pack: Callable[[bytes], bytes] = bytes
    share: float = 1.0


def fault(target: Target, content: bytes) -> str:
    """Why the damaged file is no proper error of the reader; "" where it is, or where it reads."""
    target.file.write_bytes(target.pack(content))
    started = time.monotonic()
    try:
        target.load(target.file)
    except UserError as error:
        if "\n" in str(error) or not _names(str(error), target.file):
            return f"not one line that names the file: {str(error)[:300]!r}"
    except Exception:
        return traceback.format_exc(limit=-4)
    seconds = time.monotonic() - started
    return f"{seconds:.0f} s" if seconds > SECONDS else ""


def _names(message: str, file: Path) -> bool:
    # A listing names its source folder.
    places = [file, *list(file.parents)[:3]]
    return any(f"/{place.name}" in message for place in places) or file.name in message


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """No more than `ROOM` beside what the process has mapped already."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def attack(target: Target, count: int, report: Callable[[bytes, str], None]) -> None:
    """Damages the file in `count` ways (see `share`), the same in every run, and restores it.

    Args:
      report: what to do with a content and its fault, "" for none; what it raises is shrunk.
    """

    @hypothesis.settings(
        max_examples=max(1, round(target.share * count)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(mutated(target.content))
    def one(content: bytes) -> None:
        report(content, fault(target, content))

    try:
        with limited_memory():
            one()
    finally:
        target.file.write_bytes(target.pack(target.content))
