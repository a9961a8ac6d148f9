"""Geometry and scale of a NIfTI header, with the standard's fallbacks for fields left unchecked.

Of its two transforms the sform counts where both are set, as in nibabel; one that is no transform
(zeros, NaN, coinciding axes) counts as unset. nifti1.h and nifti1_io.c: `qfac` is -1 only where
pixdim[0] is negative, spacings are positive, a quaternion beyond unit length is normalised.
"""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat

from ssl3d.data.geometry import corner_distance, spacing_of
from ssl3d.data.readers.checks import check_affine, is_affine
from ssl3d.errors import UserError

# mm per unit of the header, by its code: metre, millimetre, micrometre; mm where it is unknown.
UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
# Squared length of a quaternion's vector part beyond 1 that is rounding.
QUATERNION_TOLERANCE = 1e-2
# Relative difference of spacings that headers of one volume do not reach by rounding.
SPACING_TOLERANCE = 0.01
# Voxels between the corners of the two transforms of a scan.
CORNER_TOLERANCE = 1.0
SCANNER = 1


def affine(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    """Voxel indices to mm in RAS+, [4, 4]. Raises `UserError`: no valid transform."""
    sform, qform = _sform(header), _qform(header)
    found = next((form for form in (sform, qform) if form is not None and is_affine(form)), None)
    if found is None and sform is None and qform is None:
        found = _by_spacing(header)
    elif found is None:
        found = sform if sform is not None else qform
    assert found is not None
    if not np.isfinite(found).all() and sform is None:
        raise UserError(
            f"{path}: voxel spacing {_spacing(header)} or quaternion is no number; correct pixdim "
            "and the qform in the header"
        )
    found = found.copy()
    found[:3] *= unit(header)
    check_affine(path, found)
    return found


def scale(header: nib.Nifti1Header) -> tuple[float, float]:
    """(slope, intercept) of the stored values: 1 for a slope that is 0 or no number."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def offset(header: nib.Nifti1Header) -> int:
    """The first byte of the voxels in a file that holds both."""
    found = float(header["vox_offset"])
    if not math.isfinite(found):
        return int(header.single_vox_offset)
    return max(int(found), int(header.sizeof_hdr))


def notes(header: nib.Nifti1Header) -> list[str]:
    """What is contradictory in a header that can be read."""
    found = []
    sform, qform = _sform(header), _qform(header)
    valid = [form for form in (sform, qform) if form is not None and is_affine(form)]
    if not valid:
        if sform is None and qform is None:
            found.append(
                "the header has neither a qform nor an sform: left and right, front and back are "
                "a guess"
            )
        return found
    used = "sform" if sform is not None and valid[0] is sform else "qform"
    if sform is not None and used == "qform":
        found.append("the sform in the header is no transform; the qform is used")
    spacing, stored = spacing_of(valid[0]), _spacing(header)
    spaced = all(math.isfinite(step) and step > 0 for step in stored)
    if spaced and qform is not None and used == "sform" and not is_affine(qform):
        found.append("the qform in the header is no transform; the sform is used")
    if not np.allclose(spacing, stored, rtol=SPACING_TOLERANCE):
        found.append(
            f"the {used} says voxels of {_times(spacing)} mm, pixdim {_times(stored)} mm; the "
            f"{used} is used, correct the header if that is wrong"
        )
    elif len(valid) == 2 and int(header["sform_code"]) == int(header["qform_code"]) == SCANNER:
        shape = tuple(int(n) for n in header.get_data_shape()[:3])
        distance = corner_distance(shape, valid[0], valid[1])
        if distance > CORNER_TOLERANCE * min(spacing):
            found.append(
                f"sform and qform place voxels up to {distance:.3g} mm apart; the sform is used"
            )
    return found


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def unit(header: nib.Nifti1Header) -> float:
    """mm per unit of the header's lengths."""
    return UNITS.get(int(header["xyzt_units"]) % 8, 1.0)


def _spacing(header: nib.Nifti1Header) -> tuple[float, ...]:
    return tuple(abs(float(x)) for x in header["pixdim"][1:4])


def _sform(header: nib.Nifti1Header) -> np.ndarray | None:
    """The sform [4, 4], which may be no transform; None where it is not set."""
    if int(header["sform_code"]) <= 0:
        return None
    rows = [header[f"srow_{axis}"] for axis in "xyz"]
    return np.vstack([np.asarray(rows, np.float64), [0.0, 0.0, 0.0, 1.0]])


def _qform(header: nib.Nifti1Header) -> np.ndarray | None:
    """The qform [4, 4], which may be no transform; None where it is not set."""
    if int(header["qform_code"]) <= 0:
        return None
    vector = np.array([header[f"quatern_{axis}"] for axis in "bcd"], np.float64)
    length = float(vector @ vector)
    matrix = np.full((4, 4), np.nan)
    if not length <= 1 + QUATERNION_TOLERANCE:
        return matrix
    # A half turn where rounding left nothing for the scalar part.
    real = math.sqrt(1 - length) if length < 1 - 1e-7 else 0.0
    vector = vector if real else vector / math.sqrt(length)
    qfac = -1.0 if header["pixdim"][0] < 0 else 1.0
    steps = np.array(_spacing(header)) * [1, 1, qfac]
    matrix[:3, :3] = quat2mat([real, *vector]) * steps
    matrix[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    matrix[3] = [0, 0, 0, 1]
    return matrix


def _by_spacing(header: nib.Nifti1Header) -> np.ndarray:
    """Without any transform: nibabel's and FSL's convention, x to the left, centred."""
    spacing = np.array(_spacing(header)) * [-1, 1, 1]
    shape = np.array([*header.get_data_shape(), 1, 1, 1][:3])
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -(shape - 1) / 2 * spacing
    return matrix
