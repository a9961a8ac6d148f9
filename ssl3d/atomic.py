"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to `path` on success and removed on error.

    A killed process leaves it behind, see `leftovers`.
    """
    # The extension stays: some writers choose the format by it.
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        # A rename can reach the disk before the data: a power cut would leave zeros.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, with sorted keys: equal documents give equal bytes."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def leftovers(path: Path) -> Iterator[Path]:
    """Temporary files of `path` that killed processes left behind."""
    return path.parent.glob(f".[0-9]*.{path.name}")
