import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ssl3d.data import integrity, store
from ssl3d.errors import UserError
from tests.support import large_collection
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


# Thousands of cases: a table beside the manifest.


@pytest.fixture
def table(folder, monkeypatch):
    """The shared data set with its cases in a table, some of them without what is optional."""
    monkeypatch.setattr(store, "TABLE", 1)
    first, second, *others = store.read(folder).cases
    first = dataclasses.replace(first, foreground=None, grade=1, extra={"notes": ["ü"], "a": 0.1})
    files = {"image": integrity.digest(store.image_path(folder, second.id))}
    second = dataclasses.replace(second, files=files, labelled=False, spacing=(0.1, 1 / 3, 2.0))
    dataset = dataclasses.replace(store.read(folder), cases=(first, second, *others))
    store.write_manifest(dataset)
    return dataset


def change_table(folder, **changes):
    """Replaces columns of the table, by functions of the old ones; the manifest fits."""
    document = json.loads((folder / store.MANIFEST).read_text())
    file = folder / document["cases"]["file"]
    columns = safetensors.numpy.load_file(file)
    for name, function in changes.items():
        columns[name] = np.ascontiguousarray(function(columns[name].copy()))
    safetensors.numpy.save_file(columns, file)
    digest = integrity.digest(file)
    document["cases"] |= {"size": digest.size, "sha256": digest.sha256}
    (folder / store.MANIFEST).write_text(json.dumps(document))


def test_a_table_holds_what_a_list_does(table, folder):
    found = store.read(folder)
    assert found == table
    assert table == found
    assert found.cases != table.cases[::-1]
    assert list(map(dataclasses.asdict, found.cases)) == list(map(dataclasses.asdict, table.cases))
    copies = pickle.loads(pickle.dumps(found.cases))
    assert copies == table.cases
    assert type(copies[0]) is store.Case
    changed = dataclasses.replace(found.cases[0], split="test")
    assert (changed.split, changed.extra) == ("test", table.cases[0].extra)
    np.testing.assert_array_equal(
        store.load_image(found, found.cases[1]), store.load_image(table, table.cases[1])
    )


def test_a_table_is_replaced_by_the_next_one_and_by_a_list(table, folder, monkeypatch):
    (first,) = folder.glob("cases*")
    store.write_manifest(table)
    assert list(folder.glob("cases*")) == [first]  # equal cases, equal bytes
    store.write_manifest(dataclasses.replace(table, cases=table.cases[:5]))
    (other,) = folder.glob("cases*")
    assert other != first
    assert store.read(folder).cases == table.cases[:5]
    monkeypatch.undo()
    store.write_manifest(table)
    assert not list(folder.glob("cases*"))
    assert store.read(folder) == table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade": lambda x: x + 7}, "grade 8 is not a class"),
        ({"split": lambda x: (np.arange(14) == 1).astype(np.uint8)}, "subject .* is in two splits"),
        ({"split": lambda x: x + 2}, "split: numbers out of range"),
        ({"subject": lambda x: x - 1}, "subject: numbers out of range"),
        ({"shape": lambda x: 0 * x}, "is empty"),
        ({"shape": lambda x: x[:, :2]}, r"shape: int32 \(14, 2\)"),
        ({"spacing": lambda x: np.nan * x}, "is empty"),
        ({"spacing": lambda x: x.astype(np.float32)}, "spacing: float32"),
        ({"affine": lambda x: x + np.inf}, "the affine is not finite"),
        ({"channels": lambda x: x + 1}, "3 channels, the data set has 2 modalities"),
        ({"foreground": lambda x: x + 9}, "the foreground .* is not in the image"),
        ({"id": lambda x: x[::-1]}, "cannot be read"),
        ({"id": lambda x: np.frombuffer(b'["a"]', np.uint8)}, "id: 1 of 14 cases"),
        ({"id": lambda x: np.frombuffer(b"[1]", np.uint8)}, "id: no list of names"),
        ({"id": lambda x: np.frombuffer(x.tobytes().replace(b"01", b"00"), np.uint8)}, "twice"),
        ({"id": lambda x: np.frombuffer(x.tobytes().replace(b"case_01", b"../a_01"), np.uint8)},
         "cannot be a file name"),
        ({"more": lambda x: x}, "other columns"),
    ],
)  # fmt: skip
def test_an_inconsistent_table_is_refused(table, folder, changes, message):
    if "more" in changes:
        changes = {"id": lambda x: x}
        monkey = safetensors.numpy.load_file
        file = next(folder.glob("cases*"))
        safetensors.numpy.save_file(monkey(file) | {"more": np.zeros(2)}, file)
    change_table(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        store.read(folder)
    assert "\n" not in str(caught.value)


def test_a_table_that_was_damaged_is_refused(table, folder):
    (file,) = folder.glob("cases*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cases-\w+\.safetensors .*its SHA-256 is not"):
        store.read(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"cases-\w+\.safetensors is missing"):
        store.read(folder)
    (folder / "elsewhere").write_bytes(b"")
    document = json.loads((folder / store.MANIFEST).read_text())
    document["cases"]["file"] = "../elsewhere"
    (folder / store.MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"'\.\./elsewhere' is no name of a table"):
        store.read(folder)


def test_a_large_collection_opens_and_starts_quickly(tmp_path, monkeypatch):
    """The script of 100,000 cases on a fiftieth of them, with room for a busy machine."""
    monkeypatch.setattr(store, "TABLE", 2000)
    store.write_manifest(large_collection.collection(tmp_path, 2000))
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".safetensors", ".json"]
    found = large_collection.measure(tmp_path, start=False)
    assert found["open"][0] < large_collection.SECONDS / 5
