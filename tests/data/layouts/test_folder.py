"""Any tree of volumes or pictures."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from ssl3d.data import readers, store
from ssl3d.data.layouts.source import ListingError
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.listings import listed, the_problem


def test_images_and_labels(tmp_path):
    folder = files.write_folder(tmp_path / "scans")
    listing = listed("folder", folder)
    assert [c.id for c in listing.cases] == [
        "site0-scan0",
        "site0-scan2",
        "site1-scan1",
        "site1-scan3",
    ]
    assert all(case.label for case in listing.cases)
    images = listed("folder", folder / "images")
    assert all(case.label is None for case in images.cases)
    assert images.notes == ()
    outside = listed("folder", folder / "images", labels=folder / "labels")
    assert all(case.label for case in outside.cases)


@pytest.mark.parametrize("relative", ["source", "labels"])
def test_labels_inside_the_source_are_not_images(tmp_path, monkeypatch, relative):
    files.write_folder(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "images/truth")
    monkeypatch.chdir(tmp_path)
    here, full = Path("images"), tmp_path / "images"
    source, labels = (here, full) if relative == "source" else (full, here)
    listing = listed("folder", source, labels=labels / "truth")
    assert [case.label.name for case in listing.cases] == [
        f"scan{i}_seg.nii.gz" for i in (0, 2, 1, 3)
    ]
    assert not listing.problems


def test_unmatched_labels_and_images(tmp_path):
    folder = files.write_folder(tmp_path)
    (folder / "labels/site0/scan0_seg.nii.gz").rename(folder / "labels/scan9.nii.gz")
    listing = listed("folder", folder)
    the_problem(listing, "scan9.nii.gz", "a label without an image")
    assert [note.name for note in listing.notes] == [str(folder / "images/site0/scan0.nii.gz")]


def test_pictures_and_volumes_are_not_mixed(tmp_path):
    folder = files.write_folder(tmp_path)
    Image.fromarray(files.fundus(0)).save(folder / "images/x.png")
    with pytest.raises(UserError, match=r"volumes \(scan0.nii.gz\) and pictures \(x.png\)"):
        listed("folder", folder)


# Labels beside the images, as public sets arrange them: image, labels, options, and the labels
# that are found.
BESIDE = {
    "KiTS": ("case_{i}/imaging", ["case_{i}/segmentation"], {}, 1),
    "ACDC": ("p{i}/p{i}_frame01", ["p{i}/p{i}_frame01_gt"], {}, 1),
    "LiTS": ("volume-{i}", ["segmentation-{i}"], {}, 1),
    "endings": ("p{i}", ["p{i}_mask"], {}, 1),
    "folders": ("imagesTr/p{i}", ["labelsTr/p{i}"], {}, 1),
    "channels": ("p{i}_0000", ["masks/p{i}"], {}, 1),
    "TotalSegmentator": (
        "s{i}/ct",
        ["s{i}/segmentations/liver", "s{i}/segmentations/aorta"],
        {},
        0,
    ),
    "one of several": (
        "s{i}/ct",
        ["s{i}/segmentations/liver", "s{i}/segmentations/aorta"],
        {"labels": Path("segmentations/liver.nii.gz")},
        1,
    ),
    "after the contrast": ("p{i}/p{i}_T1", ["p{i}/p{i}_seg"], {}, 1),
    "one word": ("p{i}/image", ["p{i}/imageSeg"], {}, 1),
    "regions": ("p{i}/t1", ["p{i}/t1_roi"], {}, 1),
    "numbers": ("img{i}", ["label{i}"], {}, 1),
    "BTCV": ("img/img000{i}", ["label/label000{i}"], {}, 1),
    "a folder each": ("p{i}/image/img", ["p{i}/label/lab"], {}, 1),
    "two trees, channels": ("images/p{i}_0000", ["labels/p{i}"], {}, 1),
    "two trees, numbers": ("images/img{i}", ["labels/label{i}"], {}, 1),
    "a pattern": ("p{i}", ["p{i}_aorta"], {"labels": Path("*_aorta.nii.gz")}, 1),
    "images alone": ("p{i}", ["p{i}_aorta"], {"images": "p?.nii.gz"}, 0),
    "images named like labels": ("p{i}_mask", [], {}, 0),
}


@pytest.mark.parametrize("name", BESIDE)
def test_labels_beside_images_are_no_images(tmp_path, name):
    image, labels, options, found = BESIDE[name]
    for i in range(3):
        files.write_nifti(tmp_path / f"{image.format(i=i)}.nii.gz", files.scan(i))
        for label in labels:
            files.write_nifti(tmp_path / f"{label.format(i=i)}.nii.gz", files.segmentation())
    listing = listed("folder", tmp_path, **options)
    assert not listing.problems
    images = [case.images[0][0].relative_to(tmp_path).as_posix() for case in listing.cases]
    assert sorted(images) == [f"{image.format(i=i)}.nii.gz" for i in range(3)]
    for i, case in enumerate(sorted(listing.cases, key=lambda case: case.images)):
        expected = tmp_path / f"{labels[0].format(i=i)}.nii.gz" if found else None
        assert case.label == expected
    if len(labels) > 1 and not options:
        assert all("2 label files" in note.reason for note in listing.notes)


def test_a_label_is_not_given_to_another_image(tmp_path):
    files.write_nifti(tmp_path / "p1.nii.gz", files.scan(0))
    files.write_nifti(tmp_path / "p2_seg.nii.gz", files.segmentation())
    listing = listed("folder", tmp_path)
    assert [case.label for case in listing.cases] == [None]
    assert "without an image to it" in listing.notes[0].reason


@pytest.mark.parametrize("option", ["labels", "images"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, option):
    folder = files.write_folder(tmp_path) / "images"
    value = Path("*.none") if option == "labels" else "*.none"
    with pytest.raises(UserError, match=rf"--{option}=\*.none: matches no file"):
        listed("folder", folder, **{option: value})


@pytest.mark.parametrize("rank", [2, 3])
def test_the_recipe_chooses_between_volumes_and_pictures(tmp_path, rank):
    folder = files.write_folder(tmp_path)
    Image.fromarray(files.fundus(0)).save(folder / "images/x.png")
    listing = listed("folder", folder / "images", rank=rank)
    assert listing.rank == rank
    assert len(listing.cases) == (1 if rank == 2 else 4)
    assert "--recipe is not for them" in listing.notes[0].reason


def write_image(path):
    """A volume in the format of the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = files.scan(len(path.stem))
    if path.suffix in (".mhd", ".nhdr", ".mha", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(scan.transpose(2, 1, 0)), str(path))
    elif path.suffix in (".mgz", ".mgh"):
        nib.save(nib.MGHImage(scan.astype(np.float32), np.eye(4)), path)
    elif path.suffix == ".img":
        nib.save(nib.Nifti1Pair(scan, np.eye(4)), path)
    else:
        path.write_bytes(b"\0" * 900)
    return path


@pytest.mark.parametrize(
    "ending", [".mhd", ".nhdr", ".mha", ".nrrd", ".mgz", ".mgh", ".img", ".MHD", ".HDR"]
)
def test_every_format_is_a_case_with_all_its_files(tmp_path, ending):
    path = write_image(tmp_path / f"scans/a{ending.lower().replace('.hdr', '.img')}")
    header = path.with_suffix(".hdr") if path.suffix == ".img" else path
    if ending.isupper():
        header = header.rename(header.with_suffix(ending))
    files.write_nifti(tmp_path / "scans/b.nii.gz", files.scan(1))
    listing = listed("folder", tmp_path / "scans")
    assert not listing.problems
    assert not listing.notes
    first = listing.cases[0]
    assert [case.id for case in listing.cases] == ["a", "b"]
    apart = ending.lower() in (".mhd", ".nhdr", ".img", ".hdr")
    assert len(first.files) == 1 + apart
    readers.read_image(first.images[0], 3)
    before = readers.checksum(first.files)
    data = first.files[-1]
    data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    assert readers.checksum(first.files) != before


@pytest.mark.parametrize("ending", [".mnc", ".par", ".nii.bz2", ".gipl", ".dcm", ".npy", ".img"])
def test_a_format_that_is_not_read_is_named(tmp_path, ending):
    (tmp_path / f"first{ending}").write_bytes(b"\0" * 900)
    with pytest.raises(ListingError, match=f"no cases found .*first{ending}") as error:
        listed("folder", tmp_path)
    assert "left out" in error.value.notes[0].reason
    files.write_nifti(tmp_path / "b.nii.gz", files.scan(1))
    (note,) = listed("folder", tmp_path).notes
    assert f"first{ending}" in note.name


def test_names_of_other_scripts_stay_distinct_and_find_their_labels(tmp_path):
    names = ("张三", "李四", "Иван", "Müller", "Möller", "Muller", "a b", "a_b")
    for i, name in enumerate(names):
        # Some file systems store letters and accents apart.
        label = unicodedata.normalize("NFD", name)
        files.write_nifti(tmp_path / f"images/{name}.nii.gz", files.scan(i))
        files.write_nifti(tmp_path / f"labels/{label}_seg.nii.gz", files.segmentation())
    listing = listed("folder", tmp_path)
    assert not listing.problems
    ids = {case.images[0][0].name.removesuffix(".nii.gz"): case.id for case in listing.cases}
    assert len(set(ids.values())) == len(names)
    assert (ids["张三"], ids["Muller"], ids["Möller"], ids["a_b"]) == (
        "u5f20u4e09",
        "Muller",
        "Moller",
        "a_b",
    )
    assert ids["Müller"].startswith("Muller-")
    for case in listing.cases:
        store.check_id(case.id)
        label = unicodedata.normalize("NFC", case.label.name)
        assert label.startswith(case.images[0][0].name.removesuffix(".nii.gz"))
