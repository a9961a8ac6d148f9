"""Damaged cases of several files, DICOM series, pictures and tables, with one fault each."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.support import source_files as files
from tests.support.damaged_nifti import GRID, SCAN, SEGMENTATION, Damage, cut, shifted, with_value

SERIES = "a/series1"
SLICE = f"{SERIES}/slice005.dcm"
BRATS = "BraTS2021_00002/BraTS2021_00002"
UKB = "1000001_20252_2_0/T1/T1"


def header_only(folder):
    (folder / SLICE).with_name("slice099.dcm").write_bytes(b"\0" * 128 + b"DICM")


def real_numbers(path):
    path.with_name("eye1.png").unlink()
    Image.fromarray(np.random.default_rng(0).random((64, 64), np.float32)).save(path)


def dicom_edit(**values):
    return lambda folder: files.edit_dicom(folder / SLICE, **values)


def positron_emission(folder):
    for path in files.write_series(folder / "other", files.scan(5)).iterdir():
        files.edit_dicom(path, Modality="PT")


def undecodable(folder):
    files.edit_dicom(folder / SLICE, PixelData=b"\0" * 10)


def single_slice(folder):
    for path in sorted((folder / SERIES).iterdir())[1:]:
        path.unlink()


def picture(name, save):
    return lambda folder: save(folder / "train_images" / name)


def pages(path):
    frames = [Image.fromarray(files.fundus(i)) for i in range(2)]
    path.with_suffix(".png").unlink()
    frames[0].save(path, save_all=True, append_images=frames[1:])


def table(old, new):
    def do(folder):
        path = folder / "train.csv"
        path.write_text(path.read_text().replace(old, new))

    return do


DAMAGES = [
    # several files per case
    Damage(
        "a missing channel",
        "nnunet",
        lambda f: (f / "imagesTr/c1_0001.nii.gz").unlink(),
        ("c1_0001.nii.gz", "missing channel (T2)"),
    ),
    Damage(
        "channels that differ in shape",
        "nnunet",
        lambda f: files.write_nifti(f / "imagesTr/c1_0001.nii.gz", SCAN[1:]),
        ("c1_0001.nii.gz", "19 x 22 x 18 differs from 20 x 22 x 18"),
    ),
    Damage(
        "channels on two grids",
        "nnunet",
        lambda f: files.write_nifti(f / "imagesTr/c1_0001.nii.gz", SCAN, shifted(0, 2, 0)),
        ("c1_0001.nii.gz", "another grid than c1_0000.nii.gz"),
    ),
    Damage(
        "two files of one channel",
        "nnunet",
        lambda f: files.write_nifti(f / "imagesTr/c1_0001.nii", SCAN),
        ("c1_0001.nii", "keep one"),
    ),
    Damage(
        "two labels of one case",
        "nnunet",
        lambda f: files.write_nifti(f / "labelsTr/c1.nii", SEGMENTATION),
        ("c1.nii", "keep one"),
    ),
    Damage(
        "channels inside a channel",
        "nnunet",
        lambda f: files.write_nifti(f / "imagesTr/c1_0001.nii.gz", GRID[:, :, :, 0]),
        ("c1_0001.nii.gz", "2 channels", "split it"),
    ),
    Damage(
        "a label without image",
        "nnunet",
        lambda f: files.write_nifti(f / "labelsTr/c9.nii.gz", SEGMENTATION),
        ("c9.nii.gz", "a label without an image"),
    ),
    Damage(
        "a missing modality",
        "brats",
        lambda f: (f / f"{BRATS}_t1ce.nii.gz").unlink(),
        ("BraTS2021_00002", "missing modality T1ce"),
    ),
    Damage(
        "an unknown tumour class",
        "brats",
        lambda f: files.write_nifti(
            f / f"{BRATS}_seg.nii.gz", with_value(SEGMENTATION, 5, np.uint8)
        ),
        ("BraTS2021_00002_seg.nii.gz", "unknown label value 5"),
    ),
    Damage(
        "an empty modality",
        "brats",
        lambda f: files.write_nifti(f / f"{BRATS}_t2.nii.gz", SCAN * 0),
        ("BraTS2021_00002_t2.nii.gz", "constant"),
    ),
    Damage(
        "no T2-FLAIR",
        "ukb",
        lambda f: (f / "1000001_20253_2_0/T2_FLAIR/T2_FLAIR.nii.gz").unlink(),
        ("1000001", "missing modality T2-FLAIR"),
    ),
    Damage(
        "an empty brain mask",
        "ukb",
        lambda f: files.write_nifti(f / f"{UKB}_brain_mask.nii.gz", SEGMENTATION * 0),
        ("T1.nii.gz", "no voxel is foreground"),
    ),
    Damage(
        "a brain mask of another shape",
        "ukb",
        lambda f: files.write_nifti(f / f"{UKB}_brain_mask.nii.gz", SEGMENTATION[2:]),
        ("T1_brain_mask.nii.gz", "differs"),
    ),
    Damage(
        "two T1",
        "ukb",
        lambda f: files.write_nifti(f / f"{UKB}.nii", SCAN),
        ("T1.nii", "keep one"),
    ),
    Damage(
        "a session without FLAIR",
        "bids",
        lambda f: (f / "sub-1/ses-02/anat/sub-1_ses-02_FLAIR.nii.gz").unlink(),
        ("sub-1_ses-02", "missing modality FLAIR"),
    ),
    # other formats
    Damage(
        "a cut NRRD",
        "folder",
        lambda f: (f / "images/x.nrrd").write_bytes(
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\n"
            b"encoding: raw\nendian: little\n\nab"
        ),
        ("x.nrrd", "cannot be read"),
    ),
    Damage(
        "an MHA that is none",
        "folder",
        lambda f: (f / "images/x.mha").write_bytes(b"ObjectType = Nothing\n" * 9),
        ("x.mha", "cannot be read"),
    ),
    # DICOM
    Damage("missing slice", "dicom", lambda f: (f / SLICE).unlink(), ("series1", "1 missing")),
    Damage("another modality", "dicom", positron_emission, ("other", "modality PT, but most")),
    Damage(
        "two slices at one position",
        "dicom",
        dicom_edit(ImagePositionPatient=[0.0, 0.0, 6.0]),
        ("series1", "two slices at one position"),
    ),
    Damage("no position", "dicom", dicom_edit(ImagePositionPatient=None), ("slice005.dcm",)),
    Damage(
        "another direction",
        "dicom",
        dicom_edit(ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        ("slice005.dcm", "another direction"),
    ),
    Damage("another size", "dicom", dicom_edit(Rows=11, Columns=40), ("(11, 40) pixels among",)),
    Damage("zero PixelSpacing", "dicom", dicom_edit(PixelSpacing=[0.0, 1.0]), ("PixelSpacing",)),
    Damage("colour", "dicom", dicom_edit(SamplesPerPixel=3), ("slice005.dcm", "colour")),
    Damage("cut pixels", "dicom", undecodable, ("slice005.dcm", "cannot be read")),
    Damage("a cut file", "dicom", cut(SLICE, 0.9), ("slice005.dcm",)),
    Damage("no size", "dicom", dicom_edit(Rows=None), ("slice005.dcm",)),
    Damage("a header cut short", "dicom", header_only, ("slice099.dcm", "damaged")),
    Damage("a single slice", "dicom", single_slice, ("series1", "is a slice")),
    Damage(
        "no DICOM",
        "dicom",
        lambda f: (f / "a/notes.dcm").write_text("x" * 300),
        ("notes.dcm", "not a DICOM file"),
    ),
    Damage(
        "no HU",
        "dicom",
        lambda f: files.write_series(f / "e", (SCAN % 7) + 5000, patient="P5"),
        ("outside the window",),
    ),
    # pictures and their table
    Damage("a missing picture", "images", table("eye1,", "eye9,"), ("line 3", "eye9")),
    Damage("a grade out of range", "images", table("eye1,1", "eye1,5"), ("line 3", "grade 5")),
    Damage("no grade", "images", table("eye1,1", "eye1,"), ("line 3", "grade ''")),
    Damage("an endless grade", "images", table("eye1,1", f"eye1,{'9' * 400}"), ("line 3",)),
    Damage("a grade in words", "images", table("eye1,1", "eye1,bad"), ("line 3", "'bad'")),
    Damage("an id with a path", "images", table("eye1,", "../eye1,"), ("'../eye1'",)),
    Damage("an id of dots", "images", table("eye1,", "..,"), ("'..' is not a plain",)),
    Damage("a cut picture", "images", cut("train_images/eye1.png"), ("eye1.png", "cannot be")),
    Damage("an empty picture", "images", cut("train_images/eye1.png", 0), ("0 bytes",)),
    Damage("real numbers", "images", picture("eye1.tif", real_numbers), ("eye1.tif", "real num")),
    Damage("two pages", "images", picture("eye1.tif", pages), ("eye1.tif", "several pages")),
    Damage(
        "a black picture",
        "images",
        picture("eye1.png", lambda p: Image.new("RGB", (64, 64)).save(p)),
        ("eye1.png", "constant"),
    ),
]
