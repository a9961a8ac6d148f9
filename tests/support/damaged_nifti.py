"""Damaged NIfTI files and lists of files, with one fault each."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.support import source_files as files

IMAGE = "imagesTr/case_01.nii.gz"
LABEL = "labelsTr/case_01.nii.gz"
SCAN, SEGMENTATION = files.scan(1), files.segmentation()
GRID = SCAN.reshape(*files.SHAPE, 1, 1).repeat(2, axis=4)


@dataclasses.dataclass(frozen=True)
class Damage:
    """A change to a collection, and words of the line that reports it."""

    name: str
    layout: str
    do: Callable[[Path], object]
    words: tuple[str, ...]


def image(array, affine=None):
    return lambda folder: files.write_nifti(folder / IMAGE, array, affine)


def label(array, affine=None):
    return lambda folder: files.write_nifti(folder / LABEL, array, affine)


def with_value(array, value, dtype=np.float32):
    array = array.astype(dtype)
    array[7, 8, 9] = value
    return array


def nifti_bytes(folder):
    return bytearray(gzip.decompress((folder / IMAGE).read_bytes()))


def header_field(**fields):
    """Writes header fields that nibabel itself would refuse or correct."""

    def do(folder):
        data = nifti_bytes(folder)
        header = nib.Nifti1Header(bytes(data[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        data[:348] = header.binaryblock
        (folder / IMAGE).write_bytes(gzip.compress(bytes(data)))

    return do


def flip_a_bit(folder):
    path = folder / IMAGE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cut(name, keep=0.5):
    def do(folder):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return do


def zeroed_magic(folder):
    data = nifti_bytes(folder)
    data[344:348] = b"abc\0"
    (folder / IMAGE).write_bytes(gzip.compress(bytes(data)))


def rgb(folder):
    colours = np.zeros(files.SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    files.write_nifti(folder / IMAGE, colours)


def manifest(edit):
    def do(folder):
        path = folder / "dataset.json"
        document = json.loads(path.read_text())
        edit(document["training"])
        path.write_text(json.dumps(document))

    return do


def renamed_entry(folder):
    (folder / IMAGE).rename(folder / "imagesTr/case 01.nii.gz")
    manifest(lambda t: t[1].update(image="./imagesTr/case 01.nii.gz"))(folder)


def link_to_nothing(folder):
    (folder / IMAGE).unlink()
    (folder / IMAGE).symlink_to(folder.parent / "elsewhere.nii.gz")


def shifted(*millimetres):
    affine = np.eye(4)
    affine[:3, 3] = millimetres
    return affine


def small(folder):
    image(SCAN[:6, :6, :6])(folder)
    label(SEGMENTATION[:6, :6, :6])(folder)


def flat(folder):
    singular = np.eye(4)
    singular[:3, 1] = singular[:3, 0]
    header_field(sform_code=1, srow_x=singular[0], srow_y=singular[1], srow_z=singular[2])(folder)


def kilometres(folder):
    affine = np.diag([1e6, 1e6, 1e6, 1])
    files.write_nifti(folder / IMAGE, SCAN, affine)
    files.write_nifti(folder / LABEL, SEGMENTATION, affine)


def pipe(folder):
    (folder / IMAGE).unlink()
    os.mkfifo(folder / IMAGE)


def other_format(folder):
    (folder / IMAGE).rename(folder / "imagesTr/case_01.mnc")
    manifest(lambda training: training[1].update(image="imagesTr/case_01.mnc"))(folder)


DAMAGES = [
    # NIfTI: the file
    Damage("truncated gzip", "msd", cut(IMAGE), ("case_01.nii.gz", "truncated gzip")),
    Damage("a flipped bit", "msd", flip_a_bit, ("case_01.nii.gz", "damaged gzip")),
    Damage("wrong magic", "msd", zeroed_magic, ("case_01.nii.gz", "not a NIfTI file")),
    Damage("an empty file", "msd", cut(IMAGE, 0), ("case_01.nii.gz", "0 bytes")),
    Damage(
        "text",
        "msd",
        lambda f: (f / IMAGE).write_text("a web page about a login " * 40),
        ("case_01.nii.gz", "not a NIfTI file"),
    ),
    Damage(
        "too few voxels",
        "msd",
        lambda f: (f / IMAGE).write_bytes(gzip.compress(bytes(nifti_bytes(f)[:5000]))),
        ("case_01.nii.gz", "truncated", "15840"),
    ),
    Damage("no file", "msd", lambda f: (f / IMAGE).unlink(), (IMAGE, "no such file")),
    Damage("a link to nothing", "msd", link_to_nothing, (IMAGE, "a broken link")),
    # NIfTI: shape and geometry
    Damage("one slice", "msd", image(SCAN[:, :, :1]), ("20 x 22 x 1", "a slice")),
    Damage("2D data", "msd", image(SCAN[:, :, 0]), ("case_01.nii.gz", "2D data")),
    Damage("vectors", "msd", image(GRID), ("2 channels, the data set has 1",)),
    Damage("5D data", "msd", image(GRID.repeat(2, axis=3)), ("case_01.nii.gz", "5D data")),
    Damage("two channels", "msd", image(GRID[:, :, :, 0]), ("2 channels, the data set has 1",)),
    Damage("no voxels", "msd", header_field(dim=[3, 0, 22, 18, 1, 1, 1, 1]), ("no data",)),
    Damage("too small", "msd", small, ("6 x 6 x 6", "at least 8")),
    Damage(
        "zero spacing",
        "msd",
        header_field(pixdim=[1, 1, 0, 1, 0, 0, 0, 0], sform_code=0, qform_code=1),
        ("spacing",),
    ),
    Damage("a singular affine", "msd", flat, ("case_01.nii.gz", "singular affine")),
    Damage(
        "an affine of NaN",
        "msd",
        header_field(sform_code=1, srow_x=[np.nan, 0, 0, 0]),
        ("case_01.nii.gz", "affine holds NaN"),
    ),
    # NIfTI: values
    Damage("NaN", "msd", image(with_value(SCAN, np.nan)), ("1 voxels are NaN",)),
    Damage("Inf", "msd", image(with_value(SCAN, np.inf)), ("1 voxels are NaN or infinite",)),
    Damage("constant", "msd", image(np.full(files.SHAPE, 7, np.int16)), ("constant", "is 7")),
    Damage("complex", "msd", image(SCAN.astype(np.complex64)), ("complex64", "real numbers")),
    Damage("colours", "msd", rgb, ("case_01.nii.gz", "not real numbers")),
    # labels
    Damage("fractions", "msd", label(with_value(SEGMENTATION, 0.5)), ("0.5 is not a whole",)),
    Damage("NaN in a label", "msd", label(with_value(SEGMENTATION, np.nan)), ("NaN",)),
    Damage("an unknown value", "msd", label(with_value(SEGMENTATION, 9, np.uint8)), ("value 9",)),
    Damage("a negative value", "msd", label(with_value(SEGMENTATION, -1, np.int16)), ("-1",)),
    Damage("another grid", "msd", label(SEGMENTATION, shifted(3, 0, 0)), ("3 mm apart",)),
    Damage("another shape", "msd", label(SEGMENTATION[:-1]), ("19 x 22 x 18 differs",)),
    Damage("a label of channels", "msd", label(GRID[:, :, :, 0]), ("2 values per voxel",)),
    Damage(
        "more voxels than the file can hold",
        "msd",
        header_field(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        ("case_01.nii.gz", "truncated", "70362301923326"),
    ),
    Damage("kilometres", "msd", kilometres, ("case_01.nii.gz", "voxel spacing (1000000.0")),
    # lists and names
    Damage("a pipe", "msd", pipe, (IMAGE, "not a file")),
    Damage(
        "a NUL in a path",
        "msd",
        manifest(lambda t: t[1].update(image="imagesTr/a\0.nii.gz")),
        ("no such file",),
    ),
    Damage(
        "a path that is too long",
        "msd",
        manifest(lambda t: t[1].update(image="a" * 5000)),
        ("no such file",),
    ),
    Damage("another format", "msd", other_format, ("case_01.mnc", "convert the file")),
    Damage(
        "an id twice",
        "msd",
        manifest(lambda t: t.append(dict(t[1]))),
        ("case_01", "duplicate id"),
    ),
    Damage("an id with a space", "msd", renamed_entry, ("'case 01' cannot be a file name",)),
    Damage(
        "a path that leaves the source",
        "msd",
        manifest(lambda t: t[1].update(image="../../../etc/hostname")),
        ("hostname", "source folder"),
    ),
    Damage("an entry without image", "msd", manifest(lambda t: t[1].pop("image")), ("no image",)),
]
