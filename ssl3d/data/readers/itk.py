"""NRRD and MetaImage files, by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ssl3d.data.readers.checks import (
    check_affine,
    read_bytes,
    reporting,
    split_channels,
    without_library_output,
)
from ssl3d.errors import UserError

IMAGE_IO = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}

# Faults of a file are raised as exceptions; the warnings add nothing.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_header(path: Path, rank: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """(shape (*S), channels, affine [4, 4]) from the header alone. Raises `UserError`."""
    reader = _reader(path)
    shape, channels = split_channels(path, reader.GetSize(), rank)
    return shape, channels * reader.GetNumberOfComponents(), _affine(path, reader)


def read(path: Path, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels float32 [*S, C] and the affine [4, 4]. Raises `UserError`."""
    reader = _reader(path)
    split_channels(path, reader.GetSize(), rank)
    affine = _affine(path, reader)
    with reporting(path), without_library_output():
        image = reader.Execute()
        # A view [(T,) Z, Y, X(, components)]: GetArrayFromImage copies.
        stored = sitk.GetArrayViewFromImage(image)
    if stored.dtype.kind not in "iuf":
        raise UserError(f"{path}: values of type {stored.dtype} are not real numbers")
    dimensions = image.GetDimension()
    stored = stored.reshape((*stored.shape[:dimensions], -1))
    axes = (*reversed(range(dimensions)), dimensions)
    array = np.transpose(stored, axes).astype(np.float32)
    return array.reshape((*array.shape[:3], -1)), affine


def _reader(path: Path) -> sitk.ImageFileReader:
    read_bytes(path, 1)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    # Told, as it does not know endings in capitals.
    reader.SetImageIO(IMAGE_IO[path.suffix.lower()])
    with reporting(path), without_library_output():
        reader.ReadImageInformation()
    return reader


def _affine(path: Path, image: sitk.ImageFileReader) -> np.ndarray:
    """ITK's geometry (LPS) as an affine to RAS+."""
    dimensions = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:2] *= -1
    check_affine(path, affine)
    return affine
