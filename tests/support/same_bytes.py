"""Comparison of folders."""

from __future__ import annotations

import filecmp
from pathlib import Path


def assert_same_bytes(first: Path, second: Path) -> None:
    """Two folders hold the same files with the same bytes, but for the memory of checked files."""
    names = _files(first)
    assert names == _files(second)
    for name in names:
        assert filecmp.cmp(first / name, second / name, shallow=False), name


def _files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".verified")
    return sorted(path.relative_to(folder) for path in files)
