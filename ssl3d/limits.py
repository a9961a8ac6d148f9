"""What a file may demand of the machine: regular files only, and a share of the memory."""

from __future__ import annotations

import functools
import io
import os
import resource
import stat
from pathlib import Path

from ssl3d.errors import UserError

# One file may take this part of the memory: preparation holds an image several times, and other
# workers hold theirs.
SHARE = 4
# Memory limits of a container (control groups, version 2 and 1); "max" or huge without one.
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@functools.cache
def machine_memory() -> int:
    """Bytes of memory: the machine's, or the container's where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _GROUPS:
        try:
            found.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return min(count for count in found if count > 0)


def memory_per_file() -> int:
    """Bytes that the content of one file may take in this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
    whole = machine_memory()
    return (whole if limit == resource.RLIM_INFINITY else min(whole, limit)) // SHARE


def check_memory(path: Path, needed: int, what: str) -> None:
    """Raises `UserError` for a file whose content, as its header tells, would fill the memory.

    Args:
      needed: bytes.
      what: the content in words.
    """
    allowed = memory_per_file()
    if needed > allowed:
        raise UserError(
            f"{path}: {what} would take {_size(needed)} of memory; on this machine one file may "
            f"take {_size(allowed)} (the header is damaged, or the file needs a larger machine)"
        )


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file to read bytes; a pipe or a device could block or never end.

    Raises `UserError`: no such file, not a regular one, or not readable.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe alone would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: cannot be read (not a regular file)")
    return os.fdopen(descriptor, "rb")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
