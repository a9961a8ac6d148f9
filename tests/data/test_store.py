import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from tests.support.datasets import forget_digests


@pytest.fixture
def folder(volumes, tmp_path):
    """A copy of the shared data set to spoil, without digests."""
    shutil.copytree(volumes.path, tmp_path / "data")
    forget_digests(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def spoil(folder):
    """Changes the manifest by a function of its document."""

    def change(function):
        file = folder / store.MANIFEST
        document = json.loads(file.read_text())
        file.write_text(json.dumps(function(document) or document))
        return folder

    return change


def test_what_is_written_comes_back(volumes, pictures):
    for dataset in (volumes, pictures):
        assert store.read(dataset.path) == dataset
        assert store.read(str(dataset.path)) == dataset


def test_numpy_alone_reads_it(volumes):
    document = json.loads((volumes.path / "dataset.json").read_text())
    entry = document["cases"][0]
    image = np.load(volumes.path / "images" / f"{entry['id']}.npy", mmap_mode="r")
    assert image.dtype == np.float16
    assert list(image.shape) == [*entry["shape"], entry["channels"]]
    label = np.load(volumes.path / "labels" / f"{entry['id']}.npy", mmap_mode="r")
    assert label.dtype == np.uint8
    assert list(label.shape) == entry["shape"]


def test_images_are_read_only_maps_of_the_file(volumes):
    for array in (
        store.load_image(volumes, volumes.cases[0]),
        store.load_label(volumes, volumes.cases[0]),
    ):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_cases_are_sorted_and_splits_and_subjects_are_found(volumes, tmp_path):
    shuffled = dataclasses.replace(volumes, path=tmp_path, cases=volumes.cases[::-1])
    store.write_manifest(shuffled)
    assert store.read(tmp_path).cases == volumes.cases
    assert [case.id for case in volumes.split("test", "val")] == [
        f"case_{i:02d}" for i in range(8, 14)
    ]
    subjects = volumes.subjects()
    assert len(subjects) == 13  # the first two cases are of one subject
    assert sorted(subjects.values()) == list(range(13))


def test_equal_data_sets_give_equal_bytes(volumes, tmp_path):
    store.write_manifest(dataclasses.replace(volumes, path=tmp_path))
    one, other = ((path / store.MANIFEST).read_bytes() for path in (volumes.path, tmp_path))
    assert one == other


# Manifests that cannot be right.


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match=r"no prepared data set here.*ssl3d\.prepare"):
        store.read(tmp_path)
    with pytest.raises(UserError, match=r"no prepared data set here"):
        store.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "data",
    [b"", b'{"format": "ssl3d-pre', b"\xff\xfe\x00", b"[" * 100_000],
    ids=["empty", "cut short", "not text", "deeply nested"],
)
def test_a_manifest_that_is_not_json_is_named(folder, data):
    (folder / store.MANIFEST).write_bytes(data)
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read"):
        store.read(folder)


def test_a_manifest_that_is_a_folder_is_named(tmp_path):
    (tmp_path / store.MANIFEST).mkdir()
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read"):
        store.read(tmp_path)


def case(index, **changes):
    """A change of one case of the manifest."""

    def change(document):
        document["cases"][index] |= changes

    return change


def whole(**changes):
    return lambda document: document | changes


def without(key):
    return lambda document: {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: [document], "a JSON object is expected, found list"),
        (whole(format="nnunet"), "not the manifest of a prepared data set"),
        (whole(version=3), "format version 3, this program reads 1 and 2"),
        (whole(rank=4), "rank 4 is neither 2 nor 3"),
        (whole(rank="three"), "a field is missing or of the wrong type"),
        (whole(rank=2), "is not of rank 2"),
        (whole(cases=[]), "no cases"),
        (whole(cases=None), "a field is missing or of the wrong type"),
        (whole(cases=["case_00"]), "a field is missing or of the wrong type"),
        (without("name"), "a field is missing or of the wrong type.*name"),
        (without("modalities"), "a field is missing or of the wrong type.*modalities"),
        (case(1, id="case_00"), "case case_00 is listed twice"),
        (case(1, id="../case_01"), r"'\.\./case_01' cannot be a file name"),
        (case(1, id=".."), r"'\.\.' cannot be a file name"),
        (case(1, id="a/b"), "'a/b' cannot be a file name"),
        (case(1, id="a\\b"), "cannot be a file name"),
        (case(1, id="/etc/passwd"), "cannot be a file name"),
        (case(1, id=""), "'' cannot be a file name"),
        (case(1, id="a" * 300), "cannot be a file name"),
        (case(1, id="case\n"), "cannot be a file name"),
        (case(2, split="training"), "case case_02: unknown split 'training'"),
        (case(1, split="val"), "subject subject_01 is in two splits"),
        (case(3, shape=[24, 24]), "is not of rank 3"),
        (case(3, shape=[24, 24, 0]), "is empty"),
        (case(3, shape=[24, 24, "many"]), "a field is missing or of the wrong type"),
        (case(3, spacing=[1, 1, 0]), "is empty"),
        (case(3, spacing=[1, 1, float("nan")]), "NaN is no number in JSON"),
        (case(3, channels=3), "3 channels, the data set has 2 modalities"),
        (case(3, affine=None), "a field is missing or of the wrong type"),
        (case(3, affine=[[1.0, 0.0], [0.0, 1.0]]), "case case_03: the affine is not 4 x 4"),
        (
            case(3, foreground=[[0, 30], [0, 24], [0, 24]]),
            "case case_03: the foreground .* is not in the image",
        ),
        (
            case(3, foreground=[[5, 5], [0, 24], [0, 24]]),
            "case case_03: the foreground .* is not in the image",
        ),
        (case(3, foreground=[[0, 24]]), "case case_03: the foreground .* is not in the image"),
        (case(3, grade="severe"), "a field is missing or of the wrong type"),
        (case(3, grade=7), "case case_03: grade"),
    ],
)
def test_an_inconsistent_manifest_is_refused(spoil, change, message):
    with pytest.raises(UserError, match=message) as caught:
        store.read(spoil(change))
    assert "\n" not in str(caught.value)


# Arrays that cannot be right.


def test_a_missing_array_is_named(volumes, folder):
    dataset = store.read(folder)
    os.remove(store.image_path(folder, "case_00"))
    os.remove(store.label_path(folder, "case_00"))
    with pytest.raises(UserError, match=r"images/case_00\.npy: missing"):
        store.load_image(dataset, dataset.cases[0])
    with pytest.raises(UserError, match=r"labels/case_00\.npy: missing"):
        store.load_label(dataset, dataset.cases[0])


@pytest.mark.parametrize("keep", [0, 5, 60, 1000], ids=lambda keep: f"{keep} bytes")
def test_a_truncated_array_is_named(folder, keep):
    dataset = store.read(folder)
    file = store.image_path(folder, "case_00")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"images/case_00\.npy: cannot be read"):
        store.load_image(dataset, dataset.cases[0])


def test_pickles_are_not_opened(folder):
    dataset = store.read(folder)
    np.save(store.image_path(folder, "case_00"), np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"images/case_00\.npy: object \(1,\)"):
        store.load_image(dataset, dataset.cases[0])


@pytest.mark.parametrize(
    "array",
    [np.zeros((24, 24, 23, 2), np.float16), np.zeros((24, 24, 24, 2), np.float32)],
    ids=["shape", "type"],
)
def test_an_array_that_differs_from_the_manifest_is_refused(folder, array):
    dataset = store.read(folder)
    np.save(store.image_path(folder, "case_00"), array)
    with pytest.raises(UserError, match=r"case_00\.npy: .*expected float16 \(24, 24, 24"):
        store.load_image(dataset, dataset.cases[0])
    np.save(store.label_path(folder, "case_00"), array[..., 0])
    with pytest.raises(UserError, match=r"case_00\.npy: .*expected uint8 \(24, 24, 24\)"):
        store.load_label(dataset, dataset.cases[0])


# Writing.


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_values_that_half_precision_cannot_hold_are_refused(tmp_path, value):
    image = np.zeros((4, 4, 1), np.float32)
    image[1, 2] = value
    with pytest.raises(UserError, match=r"sick: .*float16"):
        store.write_arrays(tmp_path, "sick", image)
    assert not (tmp_path / "images").exists()


def test_a_label_of_another_shape_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a: label \(4, 5\) does not fit image \(4, 4, 1\)"):
        store.write_arrays(tmp_path, "a", np.zeros((4, 4, 1)), np.zeros((4, 5), np.uint8))


@pytest.mark.parametrize("case_id", ["../a", "a/b", ".a", "", "a b", "a\0"])
def test_no_id_leaves_the_folder(tmp_path, case_id):
    with pytest.raises(UserError, match="cannot be a file name"):
        store.write_arrays(tmp_path / "data", case_id, np.zeros((4, 4, 1)))
    assert list(tmp_path.rglob("*.npy")) == []


def test_only_whole_files_appear(tmp_path, monkeypatch):
    """A write that breaks off leaves no image, and the label goes first."""

    save = np.save

    def fail(file, array, **options):
        if array.dtype == np.float16:
            raise OSError("disk full")
        save(file, array, **options)

    monkeypatch.setattr(store.np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write_arrays(tmp_path, "a", np.zeros((4, 4, 1)), np.zeros((4, 4), np.uint8))
    assert store.label_path(tmp_path, "a").exists()
    assert not store.image_path(tmp_path, "a").exists()


def test_not_a_number_never_reaches_the_manifest(volumes, tmp_path):
    spacing = (1.0, 1.0, float("nan"))
    cases = (dataclasses.replace(volumes.cases[0], spacing=spacing),)
    with pytest.raises(ValueError, match="JSON"):
        store.write_manifest(dataclasses.replace(volumes, path=tmp_path, cases=cases))
    assert not (tmp_path / store.MANIFEST).exists()
