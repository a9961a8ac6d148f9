"""Reading safetensors files, whose header is bounded before any array is.

The format (github.com/huggingface/safetensors): the header's length in 8 bytes, the header as JSON
(name -> dtype, shape, first and last byte), the arrays one behind the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors.numpy import load

from ssl3d import documents, limits
from ssl3d.errors import UserError

DTYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# Bytes of the header's length, and of the largest header.
_LENGTH, LARGE_HEADER = 8, 16 << 20
# Axes of an array; NumPy has at most 64.
_MOST_AXES = 16
_METADATA = "__metadata__"
REMEDY = "export it again"


class Leaf(NamedTuple):
    """An array in a file, as its header describes it."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_header(path: Path) -> dict[str, Leaf]:
    """Flat name -> shape and type of each array.

    Raises:
      UserError: not a regular file, no safetensors, a type that no network here has, or arrays that
        are not exactly the rest of the file.
    """
    with limits.open_regular(path) as file:
        try:
            return _header(file)
        except documents.MALFORMED as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: cannot be read ({reason}); {REMEDY}") from None


def read(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
    """Flat name -> array, and the bytes of the file.

    Raises:
      UserError: as `read_header`, or more than the memory can hold.
    """
    read_header(path)
    # The file, and its arrays.
    limits.check_memory(path, 2 * path.stat().st_size, "its arrays")
    try:
        data = path.read_bytes()
        return load(data), data
    except Exception as error:  # the library's own, and whatever a damaged file makes NumPy raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({reason}); {REMEDY}") from None


def _header(file: BinaryIO) -> dict[str, Leaf]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH), "little")
    if not 2 <= length <= min(LARGE_HEADER, size - _LENGTH):
        raise ValueError(f"{size} bytes with a header of {length}")
    document = documents.parse(file.read(length))
    leaves, extents = {}, []
    for name, entry in document.items():
        if name != _METADATA:
            leaves[name], extent = _leaf(name, entry)
            extents.append(extent)
    at = 0
    for first, end in sorted(extents):
        if first != at:
            raise ValueError(f"a gap or an overlap at byte {first} of the arrays")
        at = end
    if at != size - _LENGTH - length:
        raise ValueError(f"{size - _LENGTH - length} bytes of arrays, the header promises {at}")
    _check_names(leaves)
    return leaves


def _leaf(name: str, entry: Mapping[str, Any]) -> tuple[Leaf, tuple[int, int]]:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of type {entry['dtype']!r}, known are {', '.join(DTYPES)}")
    dtype = np.dtype(DTYPES[entry["dtype"]])
    first, end = (_natural(value) for value in entry["data_offsets"])
    shape = tuple(_natural(value) for value in entry["shape"])
    if len(shape) > _MOST_AXES or end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape[:_MOST_AXES]} has {end - first} bytes")
    return Leaf(shape, dtype), (first, end)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a whole number from 0")
    return value


def _check_names(names: Mapping[str, Any]) -> None:
    """Raises ValueError for an array where the name of another one has a folder."""
    for name in names:
        for depth in range(1, min(name.count("/"), _MOST_AXES) + 1):
            if name.rsplit("/", depth)[0] in names:
                raise ValueError(f"an array inside the array {name.rsplit('/', depth)[0]!r:.40}")
