"""NIfTI-1 and NIfTI-2 files, gzipped or not.

nibabel parses the header; this module reads the voxels. It verifies the checksum of the gzip data
to the end and converts to float32 slab by slab, so that a volume is in memory once.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from ssl3d import limits
from ssl3d.data.readers import inflate, nifti_geometry
from ssl3d.data.readers.checks import reporting, split_channels
from ssl3d.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# Bytes of the file that contain the header (348 or 540 bytes), gzipped or not.
HEAD = 1 << 16
# Slices converted at a time: full cache lines of the result, little memory.
SLAB = 16
# header class, its size in bytes, offset of its magic string, the string
KINDS = (
    (nib.Nifti1Header, 348, 344, b"n+1\0"),
    (nib.Nifti2Header, 540, 4, b"n+2\0\r\n\x1a\n"),
)


def read_header(path: Path, rank: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """(shape (*S), channels, affine [4, 4]) from the header alone. Raises `UserError`."""
    header = _parse(path, inflate.head(path, HEAD))
    shape, channels = split_channels(path, header.get_data_shape(), rank)
    _check_size(path, math.prod(shape) * channels, _dtype(path, header).itemsize)
    return shape, channels, _affine(path, header)


def read_notes(path: Path) -> list[str]:
    """What is contradictory in the header of a readable file. Raises `UserError`."""
    header = _parse(path, inflate.head(path, HEAD))
    with reporting(path):
        return nifti_geometry.notes(header)


def read(path: Path, rank: int, as_label: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The voxels [*S, C] and the affine [4, 4].

    Args:
      path: the file.
      rank: 3; any other is an error.
      as_label: keep the type of integers that the header does not scale.

    Raises:
      UserError: damaged, not NIfTI, without valid geometry, of another rank, or not real numbers.
    """
    header = _parse(path, inflate.head(path, HEAD))
    affine = _affine(path, header)
    shape, channels = split_channels(path, header.get_data_shape(), rank)
    dtype = _dtype(path, header)
    offset = nifti_geometry.offset(header)
    count = math.prod(shape) * channels
    _check_size(path, count, dtype.itemsize, offset)
    data = inflate.content(path, offset + count * dtype.itemsize)
    _check_length(path, max(0, len(data) - offset), count * dtype.itemsize)
    stored = np.frombuffer(data, dtype, count, offset).reshape((*shape, channels), order="F")
    slope, intercept = nifti_geometry.scale(header)
    if as_label and dtype.kind in "iu" and (slope, intercept) == (1.0, 0.0):
        return stored, affine
    return _scaled(stored, slope, intercept), affine


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """`stored` [X, Y, Z, C] (Fortran order) * slope + intercept, float32 in C order."""
    array = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # `check_values` reports Inf
        for start in range(0, stored.shape[2], SLAB):
            slab = stored[:, :, start : start + SLAB]
            if (slope, intercept) != (1.0, 0.0):
                slab = slab.astype(np.float64) * slope + intercept
            array[:, :, start : start + SLAB] = slab
    return array


def _parse(path: Path, data: bytes) -> nib.Nifti1Header:
    for header_class, size, where, magic in KINDS:
        if len(data) < size or data[where : where + len(magic)] != magic:
            continue
        if size in struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]):
            with reporting(path):
                # Unchecked: nibabel's check silently replaces a zero spacing by 1 mm.
                return header_class.from_fileobj(io.BytesIO(data[:size]), check=False)
    raise UserError(f"{path}: not a NIfTI file (wrong magic number, or a truncated header)")


def _dtype(path: Path, header: nib.Nifti1Header) -> np.dtype:
    with reporting(path):
        dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        raise UserError(f"{path}: values of type {dtype} are not real numbers; convert the file")
    return dtype


def _check_size(path: Path, count: int, itemsize: int, offset: int = 0) -> None:
    """Raises `UserError` for `count` voxels that neither the file nor the memory can hold."""
    most = inflate.most_bytes(path)
    _check_length(path, max(0, most - offset), count * itemsize)
    # As stored and as float32.
    limits.check_memory(path, offset + count * (itemsize + 4), f"an image of {count} voxels")


def _check_length(path: Path, found: int, promised: int) -> None:
    if found < promised:
        raise UserError(
            f"{path}: truncated, at most {found} bytes of voxels where the header promises "
            f"{promised}; copy the file again"
        )


def _affine(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    with reporting(path):
        return nifti_geometry.affine(path, header)
