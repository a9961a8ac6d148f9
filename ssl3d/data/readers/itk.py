"""NRRD and MetaImage files, by SimpleITK in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl3d.data.readers import isolated, itk_headers
from ssl3d.data.readers.checks import check_affine, reporting, split_channels
from ssl3d.errors import UserError

if TYPE_CHECKING:
    # Imported by the functions of the other process alone: it loads slowly.
    import SimpleITK as sitk

IMAGE_IO = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}


def read_header(path: Path, rank: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """(shape (*S), channels, affine [4, 4]) from the header alone. Raises `UserError`."""
    itk_headers.check(path)
    return isolated.call(path, __name__, read_header_here.__name__, path, rank)


def read(path: Path, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels float32 [*S, C] and the affine [4, 4]. Raises `UserError`."""
    itk_headers.check(path, voxels=True)
    return isolated.call(path, __name__, read_here.__name__, path, rank)


def read_header_here(path: Path, rank: int) -> tuple[tuple[int, ...], int, np.ndarray]:
    """`read_header` in this process."""
    reader = _reader(path)
    shape, channels = split_channels(path, reader.GetSize(), rank)
    return shape, channels * reader.GetNumberOfComponents(), _affine(path, reader)


def read_here(path: Path, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """`read` in this process."""
    import SimpleITK as sitk

    reader = _reader(path)
    split_channels(path, reader.GetSize(), rank)
    affine = _affine(path, reader)
    with reporting(path):
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
    import SimpleITK as sitk

    # Faults of a file are raised as exceptions; the warnings add nothing.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    # Told, as it does not know endings in capitals.
    reader.SetImageIO(IMAGE_IO[path.suffix.lower()])
    with reporting(path):
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
