"""Image files to arrays: NIfTI, Analyze, MGH, DICOM, NRRD, MetaImage, pictures.

Every fault of a file raises a one-line `UserError` that names the file. A returned image is
finite, not constant and of the requested rank, with an invertible affine.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ssl3d import limits
from ssl3d.data.geometry import Grid
from ssl3d.data.readers import dicom, itk, nibabel_formats, nifti, pictures
from ssl3d.data.readers.checks import check_rank, check_values, enough_memory, whole_numbers
from ssl3d.errors import UserError

P = ParamSpec("P")
Result = TypeVar("Result")

# Bytes in memory while a file's checksum is computed.
CHUNK = 1 << 20
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = nifti.SUFFIXES + ITK_SUFFIXES + nibabel_formats.SUFFIXES
# Endings of image formats that are not read, and what they are.
UNREADABLE = {
    ".mnc": "MINC",
    ".par": "Philips PAR/REC",
    ".nii.bz2": "NIfTI compressed with bzip2",
    ".nii.zst": "NIfTI compressed with zstd",
    ".hdr.gz": "a compressed header of a pair",
    ".gipl": "GIPL",
    ".gipl.gz": "GIPL",
    ".head": "AFNI",
    ".mif": "MRtrix",
    ".mif.gz": "MRtrix",
    ".vtk": "VTK",
    ".vti": "VTK",
    ".dcm": "DICOM, for --layout=dicom",
    ".dicom": "DICOM, for --layout=dicom",
    ".ima": "DICOM, for --layout=dicom",
    ".v": "ECAT",
    ".npy": "an array without voxel size",
    ".npz": "arrays without voxel size",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".mat": "MATLAB",
}
PICTURE_SUFFIXES = pictures.SUFFIXES
# Bytes in which a text header names its data, and how.
TEXT_HEADER = 1 << 14
DETACHED = re.compile(r"^(?:ElementDataFile *=|data ?file *:) *(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Header:
    """The properties of an image that its header tells."""

    grid: Grid
    channels: int


@dataclasses.dataclass(frozen=True)
class Volume:
    """An image: `array` [*S, C] float32 (a label: [*S] unsigned integers), `affine` to mm RAS+."""

    array: np.ndarray
    affine: np.ndarray


def _enough_memory(read: Callable[P, Result]) -> Callable[P, Result]:
    @functools.wraps(read)
    def function(*args: P.args, **kwargs: P.kwargs) -> Result:
        first: Any = args[0]
        with enough_memory(first if isinstance(first, Path) else first[0]):
            return read(*args, **kwargs)

    return function


def suffix(path: Path) -> str:
    """The suffix of a supported file name in lower case, else ""."""
    name = path.name.lower()
    return next((s for s in VOLUME_SUFFIXES + PICTURE_SUFFIXES if name.endswith(s)), "")


def stem(path: Path) -> str:
    """The file name without its `suffix`."""
    return path.name[: len(path.name) - len(suffix(path))]


def companions(path: Path) -> tuple[Path, ...]:
    """The files with the voxels of a header file (.hdr, .mhd, .nhdr), as far as they exist."""
    kind = suffix(path)
    if kind not in (".hdr", ".mhd", ".nhdr"):
        return ()
    if kind == ".hdr":
        data = nibabel_formats.data_file(path)
        return () if data is None else (data,)
    try:
        with limits.open_regular(path) as file:
            text = file.read(TEXT_HEADER).decode("latin-1").replace("\r", "")
    except (OSError, UserError):
        return ()
    match = DETACHED.search(text)
    # A bare name: data elsewhere are not the case's.
    data = path.with_name(Path(match[1].strip()).name) if match else path
    return (data,) if data != path and data.is_file() else ()


def read_notes(paths: Sequence[Path]) -> list[str]:
    """What is contradictory or uncertain in the header of a readable image. Raises `UserError`."""
    kind = suffix(paths[0])
    if kind in nifti.SUFFIXES:
        return nifti.read_notes(paths[0])
    if kind in nibabel_formats.SUFFIXES:
        return nibabel_formats.read_notes(paths[0])
    return [] if kind else dicom.read_notes(paths)


def checksum(paths: Sequence[Path]) -> str:
    """SHA-256 of the concatenated files. Raises `UserError`."""
    digest = hashlib.sha256()
    for path in paths:
        with limits.open_regular(path) as file:
            while data := file.read(CHUNK):
                digest.update(data)
    return digest.hexdigest()


@_enough_memory
def read_header(paths: Sequence[Path], rank: int) -> Header:
    """Shape, channels and affine of an image (one file, or the files of a DICOM series).

    Raises:
      UserError: a file is missing, not an image, of another rank, or has a damaged header.
    """
    path, kind = paths[0], suffix(paths[0])
    if kind in PICTURE_SUFFIXES:
        check_rank(path, 2, rank)
        shape, channels = pictures.read_header(path)
        return Header(Grid(shape, np.eye(3)), channels)
    check_rank(path, 3, rank)
    if kind in VOLUME_SUFFIXES:
        shape, channels, affine = _volume_reader(kind).read_header(path, rank)
        return Header(Grid(shape, affine), channels)
    return Header(dicom.read_grid(paths), 1)


@_enough_memory
def read_image(paths: Sequence[Path], rank: int) -> Volume:
    """Reads an image as float32 [*S, C].

    Args:
      paths: one file, or the files of a DICOM series.
      rank: 3 for volumes, 2 for pictures (grey levels 0 to 255).

    Raises:
      UserError: a file is missing, truncated, not an image, of another rank, too small, without
        valid geometry, or its values are not finite, constant or not real numbers.
    """
    path, kind = paths[0], suffix(paths[0])
    if kind in PICTURE_SUFFIXES:
        check_rank(path, 2, rank)
        volume = Volume(pictures.read(path), np.eye(3))
    else:
        check_rank(path, 3, rank)
        if kind in VOLUME_SUFFIXES:
            volume = Volume(*_volume_reader(kind).read(path, rank))
        else:
            volume = Volume(*dicom.read_series(paths))
    check_values(path, volume.array)
    return volume


@_enough_memory
def read_label(path: Path, rank: int) -> Volume:
    """Reads a label map as unsigned integers [*S].

    Raises:
      UserError: as `read_image`, or values that are not whole numbers from 0 to 65535.
    """
    kind = suffix(path)
    if kind in PICTURE_SUFFIXES:
        check_rank(path, 2, rank)
        return Volume(whole_numbers(path, pictures.read_label(path)), np.eye(3))
    if kind not in VOLUME_SUFFIXES:
        raise UserError(f"{path}: not a label file ({', '.join(VOLUME_SUFFIXES)} or a picture)")
    if kind in nifti.SUFFIXES:
        array, affine = nifti.read(path, rank, as_label=True)
    else:
        array, affine = _volume_reader(kind).read(path, rank)
    if array.shape[-1] != 1:
        raise UserError(
            f"{path}: {array.shape[-1]} values per voxel, but a label has one; merge the channels"
        )
    return Volume(whole_numbers(path, array[..., 0]), affine)


def _volume_reader(kind: str) -> ModuleType:
    if kind in nifti.SUFFIXES:
        return nifti
    if kind in nibabel_formats.SUFFIXES:
        return nibabel_formats
    return itk
