"""One volume to write in every format, and a reader of what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssl3d.data import readers
from tests.support.source_files import orientation_affine

AFFINE = orientation_affine((1, 2, 0), (-1, 1, 1), (0.7, 0.8, 2.5))
VALUES = np.random.default_rng(0).integers(-500, 900, (12, 10, 9)).astype(np.int16)


def read(path: Path, rank: int = 3) -> readers.Volume:
    """Reads a file, or the DICOM series in a folder."""
    paths = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
    return readers.read_image(paths, rank)
