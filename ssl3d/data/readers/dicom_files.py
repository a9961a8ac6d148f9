"""DICOM files to pydicom data sets, of bounded size."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ssl3d import limits
from ssl3d.data.readers import inflate
from ssl3d.errors import UserError

# Bytes of everything before the pixels in a deflated file.
_HEAD = 64 << 20
# Bytes behind the pixels: padding and signatures.
_SLACK = 1 << 20
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def read(path: Path, voxels: bool, bare: bool = False) -> pydicom.Dataset:
    """A file, with or without its pixels.

    Args:
      bare: whether it has no preamble.

    Raises:
      UserError: not a regular file, or deflated and larger than its header promises.
      Exception: whatever pydicom raises.
    """
    with _Bounded(limits.open_regular(path).detach()) as file:
        preamble = read_preamble(file, force=True)
        meta = _read_file_meta_info(file)
        # pydicom would inflate the whole file, whatever its size.
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            start = file.tell()
            head, _ = inflate.deflated(path, file, _HEAD)
            content = io.BytesIO(head)
            found = read_dataset(content, False, True, stop_when=_at_pixels)
            if voxels:
                size = content.tell() + promised_bytes(path, found) + _SLACK
                file.seek(start)
                data, more = inflate.deflated(path, file, size)
                if more:
                    raise UserError(
                        f"{path}: inflates to more than the {size} bytes that the header "
                        "promises; damaged or hostile"
                    )
                content = io.BytesIO(data)
                found = read_dataset(content, False, True)
            return FileDataset(content, found, preamble, meta, False, True)
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=not voxels, force=bare)


class _Bounded(io.BufferedReader):
    """A file that is never asked for more bytes than it has.

    Python allocates what is asked for, and an element of a few bytes may promise gigabytes.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def promised_bytes(path: Path, header: pydicom.Dataset) -> int:
    """Bytes of the decoded pixels. Raises `UserError`: more than memory, or no frames."""
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if frames < 1:
        raise UserError(f"{path}: NumberOfFrames is {frames}; correct the header")
    samples = int(header.get("SamplesPerPixel", 1) or 1)
    shape = (frames, int(header.Rows), int(header.Columns), samples)
    if min(shape) < 1:
        raise UserError(f"{path}: no pixels, the shape is {shape}; correct the header")
    itemsize = max(1, int(header.get("BitsAllocated", 16) or 16) // 8)
    # As stored and as float32.
    limits.check_memory(path, math.prod(shape) * (itemsize + 4), f"an image of {shape}")
    return math.prod(shape) * itemsize


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) in _PIXELS
