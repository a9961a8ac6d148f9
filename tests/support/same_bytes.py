"""Comparison of folders."""

from __future__ import annotations

import filecmp
from pathlib import Path


def assert_same_bytes(first: Path, second: Path) -> None:
    """Two folders hold the same files with the same bytes."""
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert filecmp.cmp(first / name, second / name, shallow=False), name
