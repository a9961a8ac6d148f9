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
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from ssl3d import limits
from ssl3d.data.geometry import Grid
from ssl3d.data.readers import dicom_files, isolated, slices
from ssl3d.data.readers.checks import check_affine, read_bytes, reporting, split_channels
from ssl3d.errors import UserError

SUFFIXES = (".dcm", ".dicom", ".ima")
# Absolute, of the direction cosines; many scanners write six decimals or fewer.
DIRECTION_TOLERANCE = 1e-3
# Malformed values are common, and harmless in the fields that are not read here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
# Its warnings name no file, or come with an exception that names it.
logging.getLogger("pydicom").setLevel(logging.ERROR)
PLACE = ("ImagePositionPatient", "AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier")
# Bytes up to the end of the "DICM" mark.
PREAMBLE = 132
# Files without it start with an element of the file's meta group or of group 8, little-endian.
FIRST_GROUPS = (b"\x02\0", b"\x08\0")
# Longest value of such a first element: a length, a character set, an image type, a UID.
FIRST_LENGTH = 256
# Objects that refer to images or were made from them; DICOM PS3.3, C.7.3.1.1.1.
NO_IMAGES = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose",
    "RTSTRUCT": "contours",
    "RTPLAN": "a plan",
    "RTRECORD": "a treatment record",
    "RTIMAGE": "a portal image",
    "SR": "a report",
    "KO": "a selection of images",
    "PR": "a presentation state",
    "REG": "a registration",
    "FID": "fiducials",
    "RWV": "a value mapping",
    "DOC": "a document",
    "SC": "a secondary capture",
    "SMR": "a relationship of stereometric images",
    "PLAN": "a plan",
    "M3D": "a model",
}
# The same by words in the name of the SOP class, where the modality is another.
NO_IMAGE_CLASSES = {
    "Segmentation": "a segmentation",
    "RT Dose": "a dose",
    "Secondary Capture": "a secondary capture",
    "Parametric Map": "a parametric map",
    "Presentation State": "a presentation state",
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One slice: its place in the files and in space.

    Attributes:
      path: the file.
      index: frame number in the file.
      position: centre of the first pixel, mm in LPS, [3].
      digits: mm of the last digit that is written of each coordinate, [3].
      directions: unit vectors along a row and along a column, LPS, [2, 3].
      spacing: mm between rows and between columns.
      shape: (rows, columns).
      slope: value = stored value * slope + intercept (HU in CT).
      intercept: see `slope`.
    """

    path: Path
    index: int
    position: np.ndarray
    digits: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float


@dataclasses.dataclass(frozen=True)
class SeriesInfo:
    """The series that a file belongs to.

    Attributes:
      series: SeriesInstanceUID, "" without one.
      patient: PatientID.
      modality: CT, MR, PT, ...
      description: SeriesDescription.
      number: SeriesNumber.
      instance: SOPInstanceUID of the file, its number and position.
      volume: what tells apart several volumes of multi-frame files in one series.
      no_image: what the object is if it is no image of a patient, e.g. "a segmentation"; "" for an
        image.
      frames: 0 for a file without pixels.
    """

    series: str
    patient: str
    modality: str
    description: str
    number: str
    instance: str
    volume: str
    no_image: str
    frames: int


def read_info(path: Path) -> SeriesInfo | None:
    """The series of a file; None if it is not DICOM. Raises `UserError`: damaged."""
    start = read_bytes(path, PREAMBLE)
    if start[-4:] != b"DICM" and not _starts_like_an_element(start):
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"{path}: not a DICOM file despite its name (no DICM mark)")
        return None
    header = _read(path, voxels=False)
    with reporting(path):
        kind = str(getattr(header.get("SOPClassUID"), "name", ""))
        # Reports, plans and directories have a class of their own, truncated images do not.
        if "Rows" not in header and ("Image Storage" in kind or len(header) == 0):
            raise UserError(f"{path}: an image without Rows, so the file is damaged; copy it again")

        def text(name: str) -> str:
            return str(header.get(name, "") or "").strip()

        frames = int(header.get("NumberOfFrames", 1) or 1) if "Rows" in header else 0
        return SeriesInfo(
            series=text("SeriesInstanceUID"),
            patient=text("PatientID"),
            modality=text("Modality"),
            description=text("SeriesDescription"),
            number=text("SeriesNumber"),
            # The place too: some anonymisers give all files one UID.
            instance=" ".join(map(text, ("SOPInstanceUID", "InstanceNumber", *PLACE))),
            # The parts of a concatenation are one volume.
            volume=text("ConcatenationUID") or text("SOPInstanceUID") if frames > 1 else "",
            no_image=_no_image(header, kind),
            frames=frames,
        )


def _no_image(header: pydicom.Dataset, kind: str) -> str:
    by_class = (what for word, what in NO_IMAGE_CLASSES.items() if word in kind)
    if "LOCALIZER" in header.get("ImageType", ()):
        return "a localiser"
    return NO_IMAGES.get(str(header.get("Modality", "")).strip(), next(by_class, ""))


def _starts_like_an_element(start: bytes) -> bool:
    """Whether a file without the "DICM" mark starts with a data element of DICOM."""
    if len(start) < 8 or start[:2] not in FIRST_GROUPS:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    length = int.from_bytes(start[6:8] if explicit else start[4:8], "little")
    return length <= FIRST_LENGTH


def read_notes(paths: Sequence[Path]) -> list[str]:
    """What is unusual about a readable series. Raises `UserError`."""
    frames = sorted_frames(paths)
    heights = slices.heights(frames)
    if slices.regular(heights, slices.rounding(frames)):
        return []
    steps = " and ".join(f"{step:.4g}" for step in slices.steps(heights))
    return [f"slices are {steps} mm apart; resampled to {min(slices.steps(heights)):.4g} mm"]


def read_grid(paths: Sequence[Path]) -> Grid:
    """The grid of a series, [columns, rows, slices], from its headers. Raises `UserError`."""
    return _grid(sorted_frames(paths))


def sorted_frames(paths: Sequence[Path]) -> list[Frame]:
    """The frames of a series, sorted along the slice axis. Raises `UserError`."""
    return _sorted_frames(paths, [_read(path, voxels=False) for path in paths])


def plane_numbers(frames: Sequence[Frame]) -> np.ndarray:
    """The plane of the grid [slices] that is each sorted frame's, or the nearest to it."""
    places = slices.heights(frames)
    if slices.regular(places, slices.rounding(frames)):
        return np.arange(len(frames))
    step = (places[-1] - places[0]) / (slices.resampled_count(places) - 1)
    return np.rint((places - places[0]) / step).astype(int)


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
    shape = (*grid.shape[:2], len(frames))
    needed = 4 * math.prod(shape)
    limits.check_memory(paths[0].parent, needed, f"a series of {shape} voxels")
    array = np.empty(shape, np.float32)
    # A multi-frame file is decoded once; of single-slice files one at a time is in memory.
    decoded: np.ndarray | None = None
    opened = None
    for k, frame in enumerate(frames):
        if opened != frame.path:
            decoded = _pixels(frame.path, headers[0] if len(paths) == 1 else _read(frame.path))
            opened = frame.path
        assert decoded is not None
        is_stack = decoded.ndim == 3 and frame.index < len(decoded)
        pixels = decoded[frame.index] if is_stack else decoded
        if pixels.shape != frame.shape:
            raise UserError(f"{frame.path}: holds {pixels.shape} pixels, not {frame.shape}")
        array[:, :, k] = (pixels.astype(np.float64) * frame.slope + frame.intercept).T
    heights = slices.heights(frames)
    if not slices.regular(heights, slices.rounding(frames)):
        array = slices.resampled(array, heights)
    return array[..., None], grid.affine


def _read(path: Path, voxels: bool = True) -> pydicom.Dataset:
    read_bytes(path, 1)
    with reporting(path):
        start = read_bytes(path, PREAMBLE)
        bare = start[-4:] != b"DICM" and _starts_like_an_element(start)
        try:
            dataset = dicom_files.read(path, voxels, bare)
        except InvalidDicomError:
            raise UserError(f"{path}: not a DICOM file (no DICM mark)") from None
        if bare and "TransferSyntaxUID" not in dataset.file_meta:
            # Only uncompressed pixels can be written without naming their encoding.
            implicit, _ = dataset.original_encoding
            syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = syntax
        return dataset


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
    position = value("PlanePositionSequence", "ImagePositionPatient")
    frame = Frame(
        path=path,
        index=index,
        position=_numbers(position, 3),
        digits=slices.last_digits(position),
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
    slices.check(folder, frames)
    return frames


def _grid(frames: Sequence[Frame]) -> Grid:
    first, last = frames[0], frames[-1]
    rows, columns = first.shape
    heights = slices.heights(frames)
    count = len(frames)
    if not slices.regular(heights, slices.rounding(frames)):
        count = slices.resampled_count(heights)
    shape, _ = split_channels(first.path.parent, (columns, rows, count), 3)
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    # From the positions, not the normal, which differs for a tilted gantry.
    affine[:3, 2] = (last.position - first.position) / max(1, count - 1)
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM's x and y point to Left and Posterior
    check_affine(first.path.parent, affine)
    return Grid(shape, affine)
