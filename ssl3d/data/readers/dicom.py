"""DICOM series to volumes: geometry from the headers, slices sorted by position.

A series is one file per slice or one enhanced multi-frame file. pydicom's plugins (GDCM, Pillow)
decode compressed pixels.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.config
from pydicom.errors import InvalidDicomError
from pydicom.uid import RLELossless

from ssl3d import limits
from ssl3d.data.geometry import Grid
from ssl3d.data.readers import dicom_files, isolated
from ssl3d.data.readers.checks import check_affine, read_bytes, reporting, split_channels
from ssl3d.errors import UserError

SUFFIXES = (".dcm", ".dicom", ".ima")
# Relative to the slice distance; positions are written with two or three decimals.
POSITION_TOLERANCE = 0.05
# Absolute, of the direction cosines; many scanners write six decimals or fewer.
DIRECTION_TOLERANCE = 1e-3
# Malformed values are common, and harmless in the fields that are not read here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
# Its warnings name no file, or come with an exception that names it.
logging.getLogger("pydicom").setLevel(logging.ERROR)
# Bytes up to the end of the "DICM" mark.
PREAMBLE = 132


@dataclasses.dataclass(frozen=True)
class Frame:
    """One slice: its place in the files and in space.

    Attributes:
      path: the file.
      index: frame number in the file.
      position: centre of the first pixel, mm in LPS, [3].
      directions: unit vectors along a row and along a column, LPS, [2, 3].
      spacing: mm between rows and between columns.
      shape: (rows, columns).
      slope: value = stored value * slope + intercept (HU in CT).
      intercept: see `slope`.
    """

    path: Path
    index: int
    position: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float


@dataclasses.dataclass(frozen=True)
class SeriesInfo:
    """The series that a file belongs to; `frames` is 0 for a file without pixels."""

    series: str
    patient: str
    modality: str
    description: str
    frames: int


def read_info(path: Path) -> SeriesInfo | None:
    """The series of a file; None if it is not DICOM. Raises `UserError`: damaged."""
    if read_bytes(path, PREAMBLE)[-4:] != b"DICM":
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"{path}: not a DICOM file despite its name (no DICM mark)")
        return None
    header = _read(path, voxels=False)
    with reporting(path):
        kind = str(getattr(header.get("SOPClassUID"), "name", ""))
        # Reports, plans and directories have a class of their own, truncated images do not.
        if "Rows" not in header and ("Image Storage" in kind or len(header) == 0):
            raise UserError(f"{path}: an image without Rows, so the file is damaged; copy it again")
        return SeriesInfo(
            series=str(header.get("SeriesInstanceUID", "")),
            patient=str(header.get("PatientID", "") or "").strip(),
            modality=str(header.get("Modality", "") or ""),
            description=str(header.get("SeriesDescription", "") or ""),
            frames=int(header.get("NumberOfFrames", 1) or 1) if "Rows" in header else 0,
        )


def read_grid(paths: Sequence[Path]) -> Grid:
    """The grid of a series, [columns, rows, slices], from its headers. Raises `UserError`."""
    return _grid(_sorted_frames(paths, [_read(path, voxels=False) for path in paths]))


def read_series(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a series.

    Args:
      paths: its files, in any order.

    Returns:
      The values float32 [columns, rows, slices, 1], rescaled (HU in CT), and the affine [4, 4]
      to mm in RAS+.

    Raises:
      UserError: a damaged file, colour, missing or contradictory geometry, missing slices,
        several slices at one position, or slices that differ in size or direction.
    """
    headers = [_read(path, voxels=len(paths) == 1) for path in paths]
    frames = _sorted_frames(paths, headers)
    grid = _grid(frames)
    needed = 4 * math.prod(grid.shape)
    limits.check_memory(paths[0].parent, needed, f"a series of {grid.shape} voxels")
    array = np.empty(grid.shape, np.float32)
    # A multi-frame file is decoded once; of single-slice files one at a time is in memory.
    decoded = _pixels(paths[0], headers[0]) if len(paths) == 1 else None
    for k, frame in enumerate(frames):
        pixels = _pixels(frame.path, _read(frame.path)) if decoded is None else decoded
        if pixels.ndim == 3 and frame.index < len(pixels):
            pixels = pixels[frame.index]
        if pixels.shape != frame.shape:
            raise UserError(f"{frame.path}: holds {pixels.shape} pixels, not {frame.shape}")
        array[:, :, k] = (pixels.astype(np.float64) * frame.slope + frame.intercept).T
    return array[..., None], grid.affine


def _read(path: Path, voxels: bool = True) -> pydicom.Dataset:
    read_bytes(path, 1)
    with reporting(path):
        try:
            return dicom_files.read(path, voxels)
        except InvalidDicomError:
            raise UserError(f"{path}: not a DICOM file (no DICM mark)") from None


def _pixels(path: Path, dataset: pydicom.Dataset) -> np.ndarray:
    with reporting(path):
        dicom_files.promised_bytes(path, dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        # pydicom itself decodes RLE; C++ libraries, which may crash, the others.
        if not syntax.is_compressed or syntax == RLELossless:
            return dataset.pixel_array
    return isolated.call(path, __name__, decode_here.__name__, path)


def decode_here(path: Path) -> np.ndarray:
    """The pixels of a compressed file, in this process. Raises `UserError`."""
    dataset = _read(path)
    with reporting(path):
        return dataset.pixel_array


def _frames(path: Path, header: pydicom.Dataset) -> list[Frame]:
    if "Rows" not in header:
        raise UserError(f"{path}: a DICOM file without pixels ({header.get('Modality', '?')})")
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise UserError(f"{path}: a colour image; only grey volumes can be prepared")
    if "MOSAIC" in header.get("ImageType", ()):
        raise UserError(f"{path}: a mosaic of slices; convert it, e.g. with dcm2niix")
    dicom_files.promised_bytes(path, header)
    count = int(header.get("NumberOfFrames", 1) or 1)
    shared = list(header.get("SharedFunctionalGroupsSequence", ()))
    own = list(header.get("PerFrameFunctionalGroupsSequence", ()))
    if own and len(own) != count:
        raise UserError(f"{path}: {count} frames, but geometry for {len(own)}")
    if count > 1 and not own:
        raise UserError(f"{path}: a multi-frame file without the positions of its frames")
    frames = []
    for index in range(count):
        groups = [*own[index : index + 1], *shared]
        frames.append(_frame(path, index, header, groups))
    return frames


def _frame(
    path: Path, index: int, header: pydicom.Dataset, groups: Sequence[pydicom.Dataset]
) -> Frame:
    def value(macro: str, name: str, default: float | None = None) -> Any:
        """An attribute of the frame, else of all frames, else (classic files) of the file."""
        for group in groups:
            if macro in group and name in group[macro][0]:
                return group[macro][0][name].value
        found = header.get(name)
        if found is None and default is None:
            raise UserError(
                f"{path}: no {name} in the header, so the position of the slice is unknown"
            )
        return default if found is None else found

    directions = _numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2)
    frame = Frame(
        path=path,
        index=index,
        position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
        directions=directions.reshape(2, 3),
        spacing=(float(spacing[0]), float(spacing[1])),
        shape=(int(header.Rows), int(header.Columns)),
        slope=float(value("PixelValueTransformationSequence", "RescaleSlope", 1.0)),
        intercept=float(value("PixelValueTransformationSequence", "RescaleIntercept", 0.0)),
    )
    if min(frame.spacing) <= 0:
        raise UserError(f"{path}: PixelSpacing {frame.spacing}; correct the header")
    if not math.isfinite(frame.slope) or not math.isfinite(frame.intercept):
        raise UserError(
            f"{path}: RescaleSlope or RescaleIntercept is not finite; correct the header"
        )
    if np.abs(np.linalg.norm(frame.directions, axis=1) - 1).max() > DIRECTION_TOLERANCE:
        raise UserError(f"{path}: ImageOrientationPatient {directions.tolist()} is not a direction")
    return frame


def _numbers(value: Iterable[float | str], count: int) -> np.ndarray:
    numbers = np.asarray([float(x) for x in value], np.float64)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{count} finite numbers expected, found {value}")
    return numbers


def _sorted_frames(paths: Sequence[Path], headers: Sequence[pydicom.Dataset]) -> list[Frame]:
    """The frames of a series, sorted along the slice axis. Raises `UserError`: no regular stack."""
    folder = paths[0].parent
    frames: list[Frame] = []
    for path, header in zip(paths, headers, strict=True):
        with reporting(path):  # pydicom parses values on access
            frames += _frames(path, header)
    first = frames[0]
    for frame in frames[1:]:
        if frame.shape != first.shape:
            raise UserError(
                f"{frame.path}: a slice of {frame.shape} pixels among slices of {first.shape}; "
                "separate them"
            )
        if np.abs(frame.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise UserError(
                f"{frame.path}: a slice in another direction than {first.path.name} (a localiser?);"
                " remove it"
            )
        if not np.allclose(frame.spacing, first.spacing, rtol=DIRECTION_TOLERANCE):
            raise UserError(
                f"{frame.path}: PixelSpacing {frame.spacing} differs from {first.spacing} of "
                f"{first.path.name}; separate them"
            )
    normal = np.cross(*first.directions)
    frames.sort(key=lambda frame: float(frame.position @ normal))
    _check_distances(folder, frames, normal)
    return frames


def _check_distances(folder: Path, frames: Sequence[Frame], normal: np.ndarray) -> None:
    heights = np.array([frame.position @ normal for frame in frames])
    if len(heights) < 2:
        return
    distances = np.diff(heights)
    usual = float(np.median(distances))
    closest = int(np.argmin(distances))
    if distances[closest] <= POSITION_TOLERANCE * max(usual, 0.1):
        a, b = frames[closest], frames[closest + 1]
        raise UserError(
            f"{folder}: two slices at one position ({a.path.name} and {b.path.name}: several "
            "times, echoes or reconstructions in one series?); keep one of each"
        )
    wrong = np.flatnonzero(np.abs(distances - usual) > POSITION_TOLERANCE * usual)
    if len(wrong):
        a, b = frames[wrong[0]], frames[wrong[0] + 1]
        missing = round(float(distances[wrong[0]]) / usual) - 1
        what = f"{missing} missing" if missing > 0 else "not evenly spaced"
        raise UserError(
            f"{folder}: slices are {usual:.4g} mm apart, but {distances[wrong[0]]:.4g} mm between "
            f"{a.path.name} and {b.path.name} ({what}); complete the series"
        )


def _grid(frames: Sequence[Frame]) -> Grid:
    first, last = frames[0], frames[-1]
    rows, columns = first.shape
    shape, _ = split_channels(first.path.parent, (columns, rows, len(frames)), 3)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    # From the positions, not the normal, which differs for a tilted gantry.
    affine[:3, 2] = (last.position - first.position) / max(1, len(frames) - 1)
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM's x and y point to Left and Posterior
    check_affine(first.path.parent, affine)
    return Grid(shape, affine)
