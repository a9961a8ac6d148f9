"""Files that may be gzipped, read no further than their header promises.

A few megabytes of gzip can hold gigabytes: the voxels are inflated in pieces into an array of the
promised size, and a stream that goes on far beyond it is refused.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssl3d import limits
from ssl3d.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
# Maximum compression ratio of deflate.
DEFLATE_LIMIT = 1032
# Bytes read at a time, and inflated at a time.
_CHUNK, _PIECE = 1 << 15, 1 << 20
# Bytes that may follow what the header promises: some writers pad their files.
_SLACK = 1 << 20


def head(path: Path, size: int) -> bytes:
    """The first `size` bytes of the content, or all. Raises `UserError`: unreadable or empty."""
    with limits.open_regular(path) as file:
        data = _start(path, file, max(size, _CHUNK))
    if not data.startswith(GZIP_MAGIC):
        return data[:size]
    found = b""
    while data and len(found) < size:
        unzip = zlib.decompressobj(wbits=31)
        try:
            found += unzip.decompress(data, size - len(found))
        except zlib.error as error:
            raise _damaged(path, error) from None
        data = unzip.unused_data.lstrip(b"\0")
    return found


def most_bytes(path: Path) -> int:
    """How many bytes the content can have at most, by the length of the file."""
    with limits.open_regular(path) as file:
        ratio = DEFLATE_LIMIT if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else 1
        return file.seek(0, 2) * ratio


def content(path: Path, size: int) -> np.ndarray:
    """The first `size` bytes of the content as uint8 [bytes], fewer if there are no more.

    The checksums of gzip data are verified to the end, so that a truncated file never passes.

    Raises:
      UserError: unreadable, empty, damaged gzip data, or gzip data far beyond `size`.
    """
    limits.check_memory(path, size, "the content")
    found = np.empty(size, np.uint8)
    with limits.open_regular(path) as file:
        start = _start(path, file, _CHUNK)
        if start.startswith(GZIP_MAGIC):
            return found[: _inflate(path, file, start, found)]
        count = min(len(start), size)
        found[:count] = np.frombuffer(start[:count], np.uint8)
        if count < size:
            count += file.readinto(memoryview(found)[count:])
        return found[:count]


def deflated(path: Path, file: BinaryIO, size: int) -> tuple[bytes, bool]:
    """The first `size` bytes of a raw deflate stream (no gzip), and whether it goes on behind.

    Raises `UserError`: damaged.
    """
    unzip = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    parts: list[bytes] = []
    found = 0
    while found <= size and not unzip.eof:
        data = unzip.unconsumed_tail or file.read(_CHUNK)
        if not data:
            break
        try:
            parts.append(unzip.decompress(data, _PIECE))
        except zlib.error as error:
            raise _damaged(path, error) from None
        found += len(parts[-1])
    return b"".join(parts)[:size], found > size


def check_zipped(path: Path, start: int, size: int) -> None:
    """Raises `UserError` unless a zlib or gzip stream from `start` on holds `size` sound bytes."""
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    found = 0
    with limits.open_regular(path) as file:
        file.seek(start)
        while found <= size and not unzip.eof:
            data = unzip.unconsumed_tail or file.read(_CHUNK)
            if not data:
                break
            try:
                found += len(unzip.decompress(data, _PIECE))
            except zlib.error as error:
                raise _damaged(path, error) from None
    if found != size or not unzip.eof:
        what = "more" if found > size else f"{found}"
        raise UserError(
            f"{path}: inflates to {what} bytes where the header promises {size}; copy the file "
            "again"
        )


def _start(path: Path, file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if not data:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again")
    return data


def _inflate(path: Path, file: BinaryIO, data: bytes, found: np.ndarray) -> int:
    """Inflates all members into `found` and verifies them; the number of bytes stored."""
    count = stored = 0
    unzip = zlib.decompressobj(wbits=31)
    while data:
        if unzip.eof:  # the next member, or padding
            data = data.lstrip(b"\0")
            if not data:
                data = file.read(_CHUNK)
                continue
            unzip = zlib.decompressobj(wbits=31)
        try:
            piece = unzip.decompress(data, _PIECE)
            while piece:
                count += len(piece)
                if count > 2 * len(found) + _SLACK:
                    raise UserError(
                        f"{path}: inflates to far more than the {len(found)} bytes that the "
                        "header promises; damaged or hostile"
                    )
                kept = piece[: len(found) - stored]
                found[stored : stored + len(kept)] = np.frombuffer(kept, np.uint8)
                stored += len(kept)
                piece = unzip.decompress(unzip.unconsumed_tail, _PIECE)
        except zlib.error as error:
            raise _damaged(path, error) from None
        data = unzip.unused_data or file.read(_CHUNK)
    if not unzip.eof:
        raise UserError(f"{path}: truncated gzip data; copy the file again")
    return stored


def _damaged(path: Path, error: zlib.error) -> UserError:
    return UserError(f"{path}: damaged gzip data ({error}); copy the file again")
