"""Hostile files beside the valid ones of a collection, and words of the line that refuses each."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.support import source_files as files

MB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A file added to a collection of `layout`, or put in the place of one, by `write`.

    Attributes:
      words: of the line that refuses it.
    """

    name: str
    layout: str
    write: Callable[[Path], object]
    words: tuple[str, ...]


def _nifti(folder: Path) -> bytes:
    return files.write_nifti(folder / "images/site0/x.nii", files.scan(1)).read_bytes()


def decimetres(folder: Path) -> None:
    """A small scan of 99 mm per voxel, billions of voxels at the wanted 1 mm."""
    path = folder / "images/site0/x.nii"
    files.write_nifti(path, files.scan(1), np.diag([99.0, 99, 99, 1]))


def bomb(folder: Path) -> None:
    """A small scan, and 300 MB of zeros behind it."""
    data = _nifti(folder)
    (folder / "images/site0/x.nii").unlink()
    with gzip.open(folder / "images/site0/x.nii.gz", "wb", 1) as file:
        file.write(data)
        for _ in range(300):
            file.write(bytes(MB))


def sparse(folder: Path) -> None:
    """A scan of 400 GB, all of it a hole in the file."""
    path = folder / "images/site0/x.nii"
    data = bytearray(_nifti(folder))
    struct.pack_into("<8h", data, 40, 3, 7000, 7000, 4000, 1, 1, 1, 1)
    path.write_bytes(data)
    os.truncate(path, 400 << 30)


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\n{}\n"
MHA = "ObjectType = Image\nNDims = {}\nDimSize = 9 9 9\nElementType = MET_SHORT\n{}\n"
LOCAL = "ElementDataFile = LOCAL"
VOXELS = bytes(2 * 9**3)


def nrrd(field: str = "", sizes: str = "9 9 9", data: bytes = VOXELS) -> Callable[[Path], object]:
    text = NRRD.format(sizes, field + "\n" * bool(field)).encode()
    return lambda folder: (folder / "images/site0/x.nrrd").write_bytes(text + data)


def mha(fields: str, dimensions: int = 3) -> Callable[[Path], object]:
    text = MHA.format(dimensions, fields).encode()
    return lambda folder: (folder / "images/site0/x.mha").write_bytes(text + VOXELS)


def pipe_beside(folder: Path) -> None:
    nrrd("data file: pipe")(folder)
    os.mkfifo(folder / "images/site0/pipe")


def outward_data(folder: Path) -> None:
    (folder.parent / "secret.raw").write_bytes(bytes(2 * 9**3))
    nrrd("data file: ../../../secret.raw")(folder)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "images/site0/x.nrrd")


SLICE = "a/series1/slice005.dcm"


def dicom(**values: object) -> Callable[[Path], object]:
    return lambda folder: files.edit_dicom(folder / SLICE, **values)


def deflated(folder: Path) -> None:
    """A slice in deflate, and 300 MB of zeros behind it."""
    path = folder / SLICE
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    squeeze = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    parts = [squeeze.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS))]
    parts += [squeeze.compress(bytes(MB)) for _ in range(300)]
    path.write_bytes(data[:start] + b"".join(parts) + squeeze.flush())


def large_png(folder: Path) -> None:
    """13,000 x 13,000 pixels by its header."""
    path = folder / "train_images/eye1.png"
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, 16, 13_000, 13_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)


def script(folder: Path) -> None:
    """PostScript under the name of a PNG, for which Pillow would start a program."""
    path = folder / "train_images/eye1.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


LEAVES = ("x.nrrd", "leaves the folder")
MEMORY = "on this machine one file may take"
HOSTILE = [
    Hostile("a bomb of gzip", "folder", bomb, ("x.nii.gz", "far more than")),
    Hostile("large voxels", "folder", decimetres, ("x.nii", "at the wanted voxel size", MEMORY)),
    Hostile("a sparse file", "folder", sparse, ("x.nii", MEMORY)),
    Hostile("a short NRRD", "folder", nrrd(sizes="1024 1024 1024", data=bytes(512)),
            ("x.nrrd", "512 bytes of data where the header promises 2147483648")),
    Hostile("a huge NRRD", "folder", nrrd(sizes="9 9 99999999999"), ("x.nrrd", "99999999999")),
    Hostile("a long field", "folder", nrrd("content: " + "A" * 10**5), ("x.nrrd", "not a field")),
    Hostile("data of others", "folder", nrrd("data file: /etc/passwd"), LEAVES),
    Hostile("data of a device", "folder", nrrd("data file: /dev/zero"), LEAVES),
    Hostile("data outside", "folder", outward_data, LEAVES),
    Hostile("data of a pipe", "folder", pipe_beside, ("pipe", "not a regular file")),
    Hostile("a pipe", "folder", pipe, ("x.nrrd", "not a file")),
    Hostile("a format string", "folder", mha("ElementDataFile = %s%s%n"), ("x.mha", "pattern")),
    Hostile("many dimensions", "folder", mha(LOCAL, 99999), ("x.mha", "99999 where 1 to 5")),
    Hostile("no dimensions", "folder", mha(LOCAL, -3), ("x.mha", "-3 where 1 to 5")),
    Hostile("a field twice", "folder", mha(f"NDims = 50\n{LOCAL}"), ("x.mha", "twice")),
    Hostile("a field with a colon", "folder", mha(f"NDims : 5 = 1\n{LOCAL}"), ("x.mha", "NDims")),
    Hostile("much compressed", "folder",
            mha(f"CompressedData = True\nCompressedDataSize = 99999999999\n{LOCAL}"),
            ("x.mha", "99999999999")),
    Hostile("large pixels", "dicom", dicom(Rows=65535, Columns=65535), ("slice005.dcm", MEMORY)),
    Hostile("negative frames", "dicom", dicom(NumberOfFrames=-5), ("slice005.dcm", "-5")),
    Hostile("a bomb of deflate", "dicom", deflated, ("slice005.dcm", "inflates to more than")),
    Hostile("a large picture", "images", large_png, ("eye1.png", "exceeds limit")),
    Hostile("another format", "images", script, ("eye1.png", "cannot be read")),
]  # fmt: skip
