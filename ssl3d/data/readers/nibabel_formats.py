"""Pairs of header and data (NIfTI, Analyze 7.5) and FreeSurfer's MGH, by nibabel."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ssl3d import limits
from ssl3d.data.readers import inflate, nifti_geometry
from ssl3d.data.readers.checks import check_affine, read_bytes, reporting, split_channels
from ssl3d.errors import UserError

SUFFIXES = (".hdr", ".mgz", ".mgh")
# nibabel repairs headers aloud, in lines that name no file; the checks here are the readers' own.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
# Image class, offset of its magic string, the string.
PAIRS = (
    (nib.Nifti1Pair, 344, b"ni1\0"),
    (nib.Nifti2Pair, 4, b"ni2\0\r\n\x1a\n"),
)
# Bytes of an Analyze header, its first field, in either byte order.
ANALYZE_SIZE = 348


def data_file(path: Path) -> Path | None:
    """The data of a pair, beside its header .hdr; None for a file that holds both."""
    if path.suffix.lower() != ".hdr":
        return None
    names = {entry.name: entry for entry in path.parent.iterdir()}
    return next(
        (names[path.stem + end] for end in (".img", ".IMG") if path.stem + end in names), None
    )


def read_header(path: Path, rank: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """(shape (*S), channels, affine [4, 4]) from the header alone. Raises `UserError`."""
    image = _open(path)
    shape, channels = split_channels(path, image.shape, rank)
    return shape, channels, _affine(path, image)


def read(path: Path, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels float32 [*S, C] and the affine [4, 4]. Raises `UserError`."""
    image = _open(path)
    shape, channels = split_channels(path, image.shape, rank)
    affine = _affine(path, image)
    with reporting(path):
        if isinstance(image.header, nib.Nifti1Header):
            stored = np.asarray(image.dataobj.get_unscaled())
            slope, intercept = nifti_geometry.scale(image.header)
            if (slope, intercept) != (1.0, 0.0):
                stored = stored * slope + intercept
        else:
            stored = np.asarray(image.dataobj)
        array = np.asarray(stored, np.float32).reshape((*shape, channels), order="F")
    return np.ascontiguousarray(array), affine


def read_notes(path: Path) -> list[str]:
    """What is uncertain about the geometry of a readable file. Raises `UserError`."""
    image = _open(path)
    if isinstance(image.header, nib.Nifti1Header):
        return nifti_geometry.notes(image.header)
    if isinstance(image, nib.AnalyzeImage):
        return ["an Analyze header tells no orientation; x is taken to point to the left"]
    return []


def _open(path: Path) -> Any:
    read_bytes(path, 1)
    with reporting(path):
        if path.suffix.lower() != ".hdr":
            image: Any = nib.MGHImage.from_filename(path)
            data, ratio = path, inflate.DEFLATE_LIMIT if path.suffix.lower() == ".mgz" else 1
        else:
            found = data_file(path)
            if found is None:
                raise UserError(f"{path}: its data, {path.stem}.img, are missing; copy both files")
            data, ratio = found, 1
            read_bytes(data, 1)
            image = _open_pair(path, data)
        dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        raise UserError(f"{path}: values of type {dtype} are not real numbers; convert the file")
    promised = math.prod(image.shape) * dtype.itemsize
    most = data.stat().st_size * ratio
    if most < promised:
        raise UserError(
            f"{data}: truncated, at most {most} bytes where the header promises {promised}; "
            "copy the file again"
        )
    # As stored, scaled and as float32.
    needed = math.prod(image.shape) * (dtype.itemsize + 8 + 4)
    limits.check_memory(path, needed, f"an image of {image.shape}")
    return image


def _open_pair(path: Path, data: Path) -> Any:
    head = read_bytes(path, 540)
    kind: Any = next(
        (kind for kind, at, magic in PAIRS if head[at : at + len(magic)] == magic), None
    )
    if kind is None:
        if len(head) < ANALYZE_SIZE or ANALYZE_SIZE.to_bytes(4, sys.byteorder) not in (
            head[:4],
            head[3::-1],
        ):
            raise UserError(f"{path}: neither a NIfTI nor an Analyze header")
        kind = nib.Spm2AnalyzeImage
    names = {"header": path, "image": data, "mat": path.with_suffix(".mat")}
    return kind.from_file_map(
        {name: nib.FileHolder(str(names[name])) for name, _ in kind.files_types if name in names}
    )


def _affine(path: Path, image: Any) -> np.ndarray:
    with reporting(path):
        if isinstance(image.header, nib.Nifti1Header):
            return nifti_geometry.affine(path, image.header)
        affine = np.array(image.affine, np.float64)
    check_affine(path, affine)
    return affine
