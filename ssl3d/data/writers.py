"""Predictions as files: label maps and probabilities on the grid of the input image.

NIfTI for volumes, with the header of a NIfTI input; PNG and TIFF for pictures.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from ssl3d.atomic import atomic_write
from ssl3d.data import geometry, store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.readers import inflate, nifti, nifti_geometry, suffix

# Voxels between the corners of two transforms that count as one.
TOLERANCE = 0.1


def write_on_source_grid(
    folder: Path,
    source: SourceCase,
    case: store.Case,
    parts: Iterable[np.ndarray],
    dtype: np.dtype,
    channels: int = 0,
) -> None:
    """Writes `parts`: one array [*S] on the source grid, or one per channel if `channels` > 0."""
    folder.mkdir(exist_ok=True)
    if len(case.shape) == 2:
        kind, ending = ("TIFF", "tif") if channels else ("PNG", "png")
        first, *others = map(Image.fromarray, parts)
        pages = {"save_all": True, "append_images": others} if channels else {}
        with atomic_write(folder / f"{case.id}.{ending}") as path:
            first.save(path, kind, **pages)
        return
    header = header_for(source, case)
    header.set_data_dtype(dtype)
    shape = case.extra["source_shape"]
    header.set_data_shape([*shape, channels] if channels else shape)
    with atomic_write(folder / f"{case.id}.nii.gz") as path:
        write_nifti(path, parts, header)


def header_for(source: SourceCase, case: store.Case) -> nib.Nifti1Header:
    """The header of the case's first file, or an equivalent one if that is not NIfTI."""
    path, shape = source.images[0][0], case.extra["source_shape"]
    affine = np.asarray(case.extra["source_affine"])
    if suffix(path) in nifti.SUFFIXES:
        header = read_header(path)
        if _has_geometry(header, shape, affine):
            return header
        # Its two transforms differ, or one is none: programs would disagree on the prediction.
    else:
        header = nib.Nifti1Header()
    return with_geometry(header, shape, affine)


def with_geometry(
    header: nib.Nifti1Header, shape: Sequence[int], affine: np.ndarray
) -> nib.Nifti1Header:
    """The header with the shape *S and the affine, in mm, in place."""
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, "scanner")
    header.set_qform(affine, "scanner")
    if geometry.corner_distance(shape, header.get_qform(), affine) > TOLERANCE * min(
        geometry.spacing_of(affine)
    ):
        # A qform holds no shear, that of a tilted gantry: with a code, others would read it.
        header.set_qform(None, 0)
        header["pixdim"][1:4] = geometry.spacing_of(affine)
    return header


def _has_geometry(header: nib.Nifti1Header, shape: Sequence[int], affine: np.ndarray) -> bool:
    """Whether every transform that a header has is the affine (in mm, whatever its own unit)."""
    to_mm = np.diag([*[nifti_geometry.unit(header)] * 3, 1.0])
    forms = []
    try:
        for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
            forms += [to_mm @ form] if code else []
    except (nib.spatialimages.HeaderDataError, ValueError):
        return False
    limit = TOLERANCE * min(geometry.spacing_of(affine))
    return all(geometry.corner_distance(shape, form, affine) <= limit for form in forms)


def read_header(path: Path) -> nib.Nifti1Header:
    """The unchanged header of a valid NIfTI file, without its extensions."""
    head = inflate.head(path, max(size for _, size, _, _ in nifti.KINDS))
    kind, size = next(
        (kind, size)
        for kind, size, where, magic in nifti.KINDS
        if head[where : where + len(magic)] == magic
    )
    # Unchecked: nibabel's check changes unusual but harmless values, and reports them on stderr.
    return kind.from_fileobj(io.BytesIO(head[:size]), check=False)


def write_nifti(path: Path, volumes: Iterable[np.ndarray], header: nib.Nifti1Header) -> None:
    """Writes volumes [*S], one after another, as gzipped NIfTI with this header."""
    header.set_slope_inter(1, 0)
    # The display window of the scan would show all labels black.
    header["cal_min"] = header["cal_max"] = 0
    header["vox_offset"] = header.single_vox_offset
    dtype = header.get_data_dtype()
    # Without the time of writing, the same prediction is the same file; label maps compress well
    # at the fastest level.
    with path.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as zipped:
        zipped.write(header.binaryblock.ljust(header.single_vox_offset, b"\0"))
        for volume in volumes:
            for plane in np.moveaxis(volume, -1, 0):
                zipped.write(plane.astype(dtype).tobytes(order="F"))
