"""Whatever is wrong with a source: one plain line, and the good cases are not harmed.

Every entry of `DAMAGES` breaks one thing in a good collection. Without --on-error=skip the
command ends with `UserError` (status 2) and writes no manifest; with it the other cases come
out byte for byte as without the damage.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import source_files as files
from PIL import Image

from ssl3d import prepare
from ssl3d.data import store
from ssl3d.errors import UserError

IMAGE = "imagesTr/case_01.nii.gz"
LABEL = "labelsTr/case_01.nii.gz"


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a collection and what the line about it says."""

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
    """Writes fields of the header where nibabel itself would refuse or mend them."""

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


def outward_link(folder):
    target = folder.parent / "elsewhere.nii.gz"
    (folder / IMAGE).rename(target)
    (folder / IMAGE).symlink_to(target)


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


SERIES = "a/series1"
SLICE = f"{SERIES}/slice005.dcm"


def kilometres(folder):
    affine = np.diag([1e6, 1e6, 1e6, 1])
    files.write_nifti(folder / IMAGE, SCAN, affine)
    files.write_nifti(folder / LABEL, SEGMENTATION, affine)


def pipe(folder):
    (folder / IMAGE).unlink()
    os.mkfifo(folder / IMAGE)


def other_format(folder):
    (folder / IMAGE).rename(folder / "imagesTr/case_01.mgz")
    manifest(lambda training: training[1].update(image="imagesTr/case_01.mgz"))(folder)


def header_only(folder):
    (folder / SLICE).with_name("slice099.dcm").write_bytes(b"\0" * 128 + b"DICM")


def real_numbers(path):
    path.with_name("eye1.png").unlink()
    Image.fromarray(np.random.default_rng(0).random((64, 64), np.float32)).save(path)


def dicom_edit(**values):
    return lambda folder: files.edit_dicom(folder / SLICE, **values)


def second_series(folder):
    other = files.write_series(folder / "other", files.scan(5))
    for path in list(other.iterdir()):
        path.rename(folder / SERIES / f"other_{path.name}")
    other.rmdir()


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


SCAN, SEGMENTATION = files.scan(1), files.segmentation()
GRID = SCAN.reshape(*files.SHAPE, 1, 1).repeat(2, axis=4)
BRATS = "BraTS2021_00002/BraTS2021_00002"
UKB = "1000001_20252_2_0/T1/T1"

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
    Damage("a link out of the source", "msd", outward_link, (IMAGE, "leaves the source")),
    # NIfTI: shape and geometry
    Damage("one slice", "msd", image(SCAN[:, :, :1]), ("20 x 22 x 1", "a slice")),
    Damage("2D data", "msd", image(SCAN[:, :, 0]), ("case_01.nii.gz", "2D data")),
    Damage("5D data", "msd", image(GRID), ("case_01.nii.gz", "5D data")),
    Damage("two channels", "msd", image(GRID[:, :, :, 0]), ("2 channels, the data set has 1",)),
    Damage("no voxels", "msd", header_field(dim=[3, 0, 22, 18, 1, 1, 1, 1]), ("no data",)),
    Damage("too small", "msd", small, ("6 x 6 x 6", "at least 8")),
    Damage("zero spacing", "msd", header_field(pixdim=[1, 1, 0, 1, 0, 0, 0, 0]), ("spacing",)),
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
    Damage("another grid", "msd", label(SEGMENTATION, shifted(3, 0, 0)), ("3 mm away",)),
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
    Damage("another format", "msd", other_format, ("case_01.mgz", "convert the file")),
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
        ("T1.nii.gz", "nothing in the image is foreground"),
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
    Damage("two series", "dicom", second_series, ("series1", "2 series in one folder")),
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
    Damage("two pages", "images", picture("eye1.tif", pages), ("eye1.tif", "2 pages")),
    Damage(
        "a black picture",
        "images",
        picture("eye1.png", lambda p: Image.new("RGB", (64, 64)).save(p)),
        ("eye1.png", "constant"),
    ),
]


def run(layout, source, output, *more):
    prepare.main(
        [
            f"--layout={layout}",
            f"--source={source}",
            f"--output={output}",
            "--workers=1",
            *files.ARGUMENTS[layout],
            *more,
        ]
    )


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """Layout -> {case id: bytes of its arrays}, from collections without damage."""
    found = {}

    def of(layout):
        if layout not in found:
            folder = tmp_path_factory.mktemp(layout)
            run(layout, files.WRITERS[layout](folder / "source"), folder / "out")
            found[layout] = arrays(folder / "out")
        return found[layout]

    return of


def arrays(output):
    return {
        case.id: store.image_path(output, case.id).read_bytes() for case in store.read(output).cases
    }


def test_there_are_forty():
    assert len(DAMAGES) >= 40
    assert {damage.layout for damage in DAMAGES} == set(files.WRITERS)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: f"{damage.layout}: {damage.name}")
def test_damage(damage, tmp_path, capsys, undamaged):
    source = files.WRITERS[damage.layout](tmp_path / "source")
    damage.do(source)

    with pytest.raises(UserError):
        run(damage.layout, source, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / store.MANIFEST).exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in damage.words:
        assert word in lines[0]
    assert "Traceback" not in lines[0]

    run(damage.layout, source, tmp_path / "skipped", "--on-error=skip")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1
    clean = undamaged(damage.layout)
    found = arrays(tmp_path / "skipped")
    assert found
    same = [name for name in found if found[name] == clean.get(name)]
    others = set(found) - set(same)
    # A picture whose row is wrong, or whose row names another, stays as an unlabelled one.
    assert others <= {"eye9"}
    assert len(found) >= len(clean) - 2
    assert "left out" in (tmp_path / "skipped" / "report.csv").read_text()


@pytest.mark.parametrize(
    ("layout", "file", "text", "what"),
    [
        ("msd", "dataset.json", "[" * 100_000, "not readable as JSON"),
        ("msd", "dataset.json", '{"modality": {}, "labels": {}}', '"modality" is missing'),
        ("msd", "dataset.json", '{"modality": {"0": "A", "2": "B"}}', '"modality" is missing'),
        ("bids", "derivatives/lesions/dseg.tsv", f"index\tname\n1\t{'a' * 200_000}", "dseg.tsv"),
        ("bids", "derivatives/lesions/dseg.tsv", "index\tname\n-1\ta", "the label value -1"),
        ("images", "train.csv", f'id_code,diagnosis\n"{"a" * 200_000}",1', "field larger"),
        ("images", "train.csv", "id_code;diagnosis\neye0;1", "no CSV with a name"),
    ],
)
def test_tables_that_cannot_be_used_are_one_line(tmp_path, layout, file, text, what):
    source = files.WRITERS[layout](tmp_path / "source")
    (source / file).write_text(text)
    with pytest.raises(UserError) as error:
        run(layout, source, tmp_path / "out")
    assert what in str(error.value)
    assert str(source) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", sorted(files.WRITERS))
def test_an_empty_source_is_one_line(layout, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError) as error:
        run(layout, tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
