"""Label maps as DICOM Segmentation objects of the series that they were predicted for.

highdicom writes them, which is an extra. The frames are those of the series, plane by plane, so
that viewers lay them over the images.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

import ssl3d
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.readers import dicom, suffix
from ssl3d.errors import UserError

SERIES_DESCRIPTION = "Segmentation by ssl3d"
# Above the numbers that scanners give.
_SERIES_NUMBER = 9000


def check_installed() -> None:
    """Raises `UserError` without highdicom."""
    if importlib.util.find_spec("highdicom") is None:
        raise UserError(
            "--format=dicom-seg: needs highdicom; install it with pip install 'ssl3d[dicom-seg]'"
        )


def check_source(source: SourceCase) -> None:
    """Raises `UserError` unless the case is one DICOM series."""
    first = source.images[0][0]
    if suffix(first):
        raise UserError(
            f"{first}: no DICOM series, so that --format=dicom-seg has no images to refer to; use "
            "--format=nifti"
        )


def write(path: Path, source: SourceCase, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Writes one binary segment per foreground class, of the class's number and name.

    Args:
      labels: class indices uint8 [columns, rows, slices], on the grid that `dicom.read_series`
        returns for the case.
      classes: names, the background first.

    Raises:
      UserError: a header that no segmentation can refer to.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    paths = source.images[0]
    frames = dicom.sorted_frames(paths)
    planes = labels.transpose(2, 1, 0)[dicom.plane_numbers(frames)]
    opened: dict[Path, pydicom.Dataset] = {}
    for frame in frames:
        if frame.path not in opened:
            opened[frame.path] = pydicom.dcmread(frame.path, stop_before_pixels=True, force=True)
    if len(opened) == 1:  # highdicom takes the frames of a file in its own order
        order = np.argsort([frame.index for frame in frames])
        planes, frames = planes[order], [frames[number] for number in order]
    algorithm = hd.AlgorithmIdentificationSequence(
        name="ssl3d",
        version=ssl3d.__version__,
        family=codes.DCM.ArtificialIntelligence,
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            # What a class is, its name alone tells; 3D Slicer's code where none is chosen.
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes[1:], start=1)
    ]
    places = np.sort([frame.position @ np.cross(*frame.directions) for frame in frames])
    step = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
    with _refusals(paths[0]):
        document = hd.seg.Segmentation(
            source_images=[_completed(header, step) for header in opened.values()],
            pixel_array=np.ascontiguousarray(planes),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="ssl3d",
            manufacturer_model_name="ssl3d",
            software_versions=ssl3d.__version__,
            device_serial_number="0",
            series_description=SERIES_DESCRIPTION,
        )
        document.save_as(path)


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Names the series that highdicom, which checks all headers, makes no segmentation of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: no DICOM segmentation can refer to this series ({reason}); use --format=nifti"
        ) from None


def _completed(header: Any, step: float) -> Any:
    """A header with what highdicom copies: elements that anonymisers remove, the thickness.

    Args:
      step: mm between slices.
    """
    for name in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
        "StudyDate", "StudyTime", "ReferringPhysicianName",
    ):  # fmt: skip
        if name not in header:
            setattr(header, name, "")
    groups = [
        *header.get("SharedFunctionalGroupsSequence", ()),
        *header.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    measures = [part for group in groups for part in group.get("PixelMeasuresSequence", ())]
    for part in measures or [header]:
        if part.get("SliceThickness") is None:
            part.SliceThickness = f"{step:.8g}"
    return header
