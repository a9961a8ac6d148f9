"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write to; the file is called `path` when it is whole, or removed.

    A kill leaves the part that was written, see `leftovers`.
    """
    # The ending stays: some writers tell the format by it.
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        # A rename can reach the disk before the data it names: a power cut would leave zeros.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def leftovers(path: Path) -> Iterator[Path]:
    """What killed processes left of a file that was to be called `path`."""
    return path.parent.glob(f".[0-9]*.{path.name}")
