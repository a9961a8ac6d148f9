"""2D pictures: PNG, JPEG, TIFF, BMP."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ssl3d import limits
from ssl3d.data.readers.checks import read_bytes, reporting
from ssl3d.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# EXIF tag of the camera's orientation; from 5 on, rows and columns are swapped.
ORIENTATION, FIRST_SWAPPED = 0x0112, 5
# Divisor of 16-bit grey levels: 65535 -> 255.
LEVELS_16_TO_8 = 257


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """((rows, columns), channels) without decoding the pixels. Raises `UserError`."""
    picture = _open(path)
    with reporting(path):
        width, height = picture.size
        if picture.getexif().get(ORIENTATION, 1) >= FIRST_SWAPPED:
            width, height = height, width
    return (height, width), 1 if _is_grey(picture) else 3


def read(path: Path) -> np.ndarray:
    """Grey levels 0 to 255, float32 [rows, columns, 1 or 3], upright. Raises `UserError`."""
    picture = _open(path)
    if picture.mode == "F":
        raise UserError(f"{path}: real numbers, not grey levels; save it with 8 or 16 bits")
    with reporting(path):
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            array = np.asarray(picture, np.float32) / LEVELS_16_TO_8
        else:
            array = np.asarray(picture.convert("L" if _is_grey(picture) else "RGB"), np.float32)
    return array[..., None] if array.ndim == 2 else array


def read_label(path: Path) -> np.ndarray:
    """The stored values (palette indices or grey levels) [rows, columns]. Raises `UserError`."""
    picture = _open(path)
    with reporting(path):
        array = np.asarray(ImageOps.exif_transpose(picture))
    if array.ndim != 2:
        raise UserError(
            f"{path}: a colour picture of {array.shape[-1]} channels cannot be a label map; "
            "store one number per pixel"
        )
    return array.astype(np.uint8) if array.dtype == bool else array


def _open(path: Path) -> Image.Image:
    read_bytes(path, 1)
    with reporting(path):
        # Above a number of pixels Pillow warns of a bomb, which `reporting` would hide.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # By content, Pillow would also open formats that start other programs.
        picture = Image.open(path, formats=FORMATS)
        many = _has_pages(picture)
    if many:
        raise UserError(f"{path}: several pages in one file; save one picture each")
    width, height = picture.size
    # As stored, converted and as float32, three channels each.
    needed = width * height * 3 * 6
    limits.check_memory(path, needed, f"a picture of {width} x {height} pixels")
    return picture


def _has_pages(picture: Image.Image) -> bool:
    """Whether there is a second page; a count would visit them all."""
    try:
        picture.seek(1)
    except EOFError:
        return False
    return True


def _is_grey(picture: Image.Image) -> bool:
    return picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")
