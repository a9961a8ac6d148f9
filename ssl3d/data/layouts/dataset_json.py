"""dataset.json of the Decathlon and of nnU-Net: names of channels and classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl3d import documents
from ssl3d.data.layouts.listing import Options
from ssl3d.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError`."""
    return documents.read_object(
        path, "correct it", f"{path}: missing; this layout needs it (see docs/data.md)"
    )


def numbered(path: Path, document: dict[str, Any], key: str) -> tuple[str, ...]:
    """{"0": "CT", "1": "PET"} -> ("CT", "PET"). Raises `UserError`."""
    try:
        names = {int(number): str(name) for number, name in document[key].items()}
        return tuple(names[number] for number in range(max(1, len(names))))
    except documents.MALFORMED:
        raise UserError(
            f'{path}: "{key}" is missing or not like {{"0": "T1", "1": "T2"}}'
        ) from None


def classes(
    options: Options,
    read: Callable[[Path, dict[str, Any]], dict[int, str]],
    path: Path,
    document: dict[str, Any],
) -> dict[int, str] | None:
    """The user's classes, else those that `read` finds; none where labels are left alone."""
    if options.no_labels:
        return None
    return options.classes or read(path, document)


def msd_classes(path: Path, document: dict[str, Any]) -> dict[int, str]:
    """{"0": "background", "1": "tumour"} -> label value -> name. Raises `UserError`."""
    try:
        return {int(value): str(name) for value, name in document["labels"].items()}
    except documents.MALFORMED:
        raise UserError(
            f'{path}: "labels" is missing or not like {{"0": "background", "1": "tumour"}}'
        ) from None


def nnunet_classes(path: Path, document: dict[str, Any]) -> dict[int, str]:
    """{"background": 0, "tumour": 1} -> label value -> name; regions become one class per value.

    The value of "ignore" keeps this name, see `listing.IGNORE`.

    Raises `UserError`.
    """
    found: dict[int, str] = {}
    try:
        for name, value in document["labels"].items():
            if isinstance(value, list):
                found |= {v: f"label {v}" for v in map(_whole, value) if v not in found}
            else:
                found[_whole(value)] = str(name)
    except documents.MALFORMED:
        raise UserError(
            f'{path}: "labels" is missing or not like {{"background": 0, "tumour": 1}}'
        ) from None
    return found


def _whole(value: Any) -> int:
    """2 or "2" -> 2. Raises ValueError for 2.5."""
    if int(value) != float(value):
        raise ValueError(value)
    return int(value)
