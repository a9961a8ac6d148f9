"""Are the files of a prepared data set those that were written? Size and SHA-256 of each.

A file is hashed at its first read. `.verified` in the data set's folder keeps what was found sound,
by times of change and size, so that later reads and runs cost nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ssl3d import documents
from ssl3d.errors import UserError

_VERIFIED = ".verified"


class Digest(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def digest(path: Path) -> Digest:
    """The digest of a file, read as a stream."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(file.tell(), found)


def check_regular(folder: Path, path: Path) -> os.stat_result:
    """The status of a file of the data set in `folder`.

    Raises:
      UserError: no regular file, or a link that leaves the folder.
      OSError: no such file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file; prepare the data again")
    # The file, or a folder on the way to it. Few are links: to resolve all takes long.
    within, base = os.fspath(path), os.fspath(folder)
    while len(within) > len(base):
        if os.path.islink(within) and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{path}: behind a link out of the data set; copy the files in its place"
            )
        within = os.path.dirname(within)
    return status


def verify(folder: Path, path: Path, expected: Digest, trust: bool = True) -> None:
    """Compares a file of the data set in `folder` with its digest in the manifest.

    Args:
      trust: accept what an earlier call has found sound.

    Raises:
      UserError: they differ.
      OSError: it cannot be read.
    """
    status = check_regular(folder, path)
    if status.st_size != expected.size:
        raise UserError(
            f"{path}: {status.st_size} bytes, {expected.size} by the manifest; damaged or "
            "replaced, prepare the data again"
        )
    name = f"{path.parent.name}/{path.name}"
    # The time of change of the inode cannot be set, as an edited file's own can.
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    entry = f"{name} {times} {expected.size} {expected.sha256}"
    known = _known(os.path.abspath(folder))
    if trust and entry in known:
        return
    if digest(path) != expected:
        raise UserError(
            f"{path}: its SHA-256 is not the manifest's; damaged or replaced, prepare the data "
            "again"
        )
    known.add(entry)
    # Whole lines at once: several processes may verify the same data.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError):  # a read-only folder, or a link or pipe of this name
        descriptor = os.open(folder / _VERIFIED, flags, 0o666)
        os.write(descriptor, f"{entry}\n".encode())
        os.close(descriptor)


@functools.cache
def _known(folder: str) -> set[str]:
    """What earlier runs found sound, kept up to date in this process."""
    file = Path(folder, _VERIFIED)
    try:
        check_regular(Path(folder), file)
        found = documents.read_bytes(file, "", documents.large_list())
        return set(found.decode(errors="replace").splitlines())
    except (OSError, UserError):
        return set()
