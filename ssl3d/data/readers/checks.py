"""Checks of image files: rank, shape, affine, values.

Each check raises a one-line `UserError` that names the file.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl3d import limits
from ssl3d.data.geometry import spacing_of
from ssl3d.errors import UserError

# Voxels: fewer than this along an axis is a slice or a localiser, not a volume.
MIN_VOLUME_SIZE = 4
# Smallest singular value of the axis directions; below it two axes coincide.
SINGULAR = 1e-6
# Deviation of label values from integers; a scale factor in the header rounds.
LABEL_TOLERANCE = 1e-3
LARGEST_LABEL = 65535
# mm, thicker than any slice; beyond it the header is damaged or in another unit.
LARGEST_SPACING = 100.0


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turns the exceptions of the image libraries into one line that names the file.

    Their warnings are suppressed: they name no file, and this module checks what matters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):  # see `enough_memory`
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        # The last line of a library's message is the cause; ITK appends a stale errno.
        lines = [line for line in str(error).splitlines() if not line.startswith("Reason: ")]
        reason = lines[-1].strip() if lines else type(error).__name__
        reason = re.sub(r"^(ITK|sitk::)\s*ERROR: (\w+\(0x\w+\): )?", "", reason)
        raise UserError(
            f"{path}: cannot be read as an image ({reason}); damaged or of another format"
        ) from None


@contextlib.contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Turns a lack of memory into one line that names the file."""
    try:
        yield
    except MemoryError:
        raise UserError(
            f"{path}: not enough memory to read it; use fewer --workers, or a larger machine"
        ) from None


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The file's first `limit` bytes, or all. Raises `UserError`: unreadable or empty."""
    try:
        with limits.open_regular(path) as file:
            data = file.read(limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise UserError(f"{path}: the file is empty (0 bytes); copy it again")
    return data


def check_rank(path: Path, found: int, wanted: int) -> None:
    """Raises `UserError` for a picture (2) where a volume (3) is wanted, and vice versa."""
    if found != wanted:
        kinds = {2: "a 2D picture", 3: "a 3D volume"}
        raise UserError(f"{path}: {kinds[found]}, but {kinds[wanted]} is needed here")


def split_channels(path: Path, shape: Sequence[int], rank: int) -> tuple[tuple[int, ...], int]:
    """(X, Y, Z) or (X, Y, Z, C) of a volume file -> ((X, Y, Z), C). Raises `UserError`."""
    check_rank(path, 3, rank)
    # NIfTI: time is the fourth axis and a vector's components are the fifth; an axis that a header
    # leaves at 0 has one element.
    shape = tuple(int(n) for n in shape)
    shape = (*shape[:3], *(n for n in shape[3:] if n > 1))
    if len(shape) not in (3, 4):
        raise UserError(f"{path}: {len(shape)}D data of shape {shape}, but a 3D volume is needed")
    if min(shape) < 1:
        raise UserError(f"{path}: no data, the shape is {shape}")
    if min(shape[:3]) < MIN_VOLUME_SIZE:
        raise UserError(
            f"{path}: {' x '.join(map(str, shape[:3]))} voxels is a slice, not a 3D volume "
            f"(at least {MIN_VOLUME_SIZE} along each axis)"
        )
    return shape[:3], shape[3] if len(shape) == 4 else 1


def is_affine(affine: np.ndarray) -> bool:
    """Whether an affine [4, 4] is finite and invertible."""
    if not np.isfinite(affine).all():
        return False
    spacing = spacing_of(affine)
    if min(spacing) == 0:
        return False
    return bool(np.linalg.svd(affine[:3, :3] / spacing, compute_uv=False)[-1] >= SINGULAR)


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises `UserError` unless the affine [4, 4] is finite and invertible."""
    if not np.isfinite(affine).all():
        raise UserError(f"{path}: the affine holds NaN or infinite numbers; correct the header")
    spacing = spacing_of(affine)
    if min(spacing) == 0 or max(spacing) > LARGEST_SPACING:
        raise UserError(f"{path}: voxel spacing {spacing}; correct the header")
    if not is_affine(affine):
        raise UserError(f"{path}: singular affine, two axes coincide; correct the header")


def check_values(path: Path, image: np.ndarray) -> None:
    """Raises `UserError` for non-finite values in an image [*S, C] or a constant channel.

    A picture is refused only if all its channels are constant.
    """
    lows = [float(image[..., channel].min()) for channel in range(image.shape[-1])]
    highs = [float(image[..., channel].max()) for channel in range(image.shape[-1])]
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
        where = f" in channel {channel}" if len(lows) > 1 else ""
        if not (math.isfinite(low) and math.isfinite(high)):
            values = image[..., channel]
            count = int(values.size - np.isfinite(values).sum())
            raise UserError(
                f"{path}: {count} voxels are NaN or infinite{where}; replace them, e.g. by 0"
            )
        # The blue channel of many fundus cameras is black.
        if low == high and (image.ndim == 4 or min(lows) == max(highs)):
            raise UserError(f"{path}: constant image, every voxel is {low:g}{where}")


def whole_numbers(path: Path, label: np.ndarray) -> np.ndarray:
    """Label values in the smallest unsigned type that holds them. Raises `UserError`."""
    if label.dtype.kind not in "iuf":
        raise UserError(f"{path}: label values of type {label.dtype} are not numbers")
    low, high = label.min(), label.max()
    if label.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(f"{path}: label values are NaN or infinite; replace them by 0")
        for plane in label:
            rest = np.abs(plane - np.rint(plane))
            if rest.max() > LABEL_TOLERANCE:
                value = plane.flat[int(rest.argmax())]
                raise UserError(
                    f"{path}: label value {value:g} is not a whole number (was the label "
                    "resampled with interpolation, or is this an image?)"
                )
        low, high = np.rint(low), np.rint(high)
    if low < 0 or high > LARGEST_LABEL:
        value = low if low < 0 else high
        raise UserError(f"{path}: label value {value:g} is outside 0 to {LARGEST_LABEL}")
    if label.dtype.kind == "f":
        label = np.rint(label)
    return label.astype(np.uint8 if high <= 255 else np.uint16)
