"""Collections of thousands of cases: a table beside the manifest."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import safetensors.numpy

from ssl3d import documents
from ssl3d.data import cases, integrity, store
from ssl3d.errors import UserError
from tests.support import large_collection


@pytest.fixture
def folder(volumes, tmp_path):
    """A copy of the shared data set to spoil."""
    shutil.copytree(volumes.path, tmp_path / "data")
    return tmp_path / "data"


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
        ({"extra_at": lambda x: x - 1}, "extra_at: beyond the column"),
        ({"extra_at": lambda x: x + 1}, "extra_at: beyond the column"),
        ({"extra_at": lambda x: x[:, ::-1]}, "extra_at: beyond the column"),
        ({"extra": lambda x: x.astype(np.int32)}, "a column of text is not of bytes"),
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


@pytest.mark.parametrize("text", [b"{", b"7", b"[" * 10**5, b'{"a": NaN}', b"\xff"])
def test_what_a_case_has_more_is_refused_by_name_if_damaged(table, folder, text):
    change_table(
        folder,
        extra=lambda x: np.frombuffer(text, np.uint8),
        extra_at=lambda x: np.tile(np.array([0, len(text)]), (14, 1)),
    )
    case = store.read(folder).cases[1]
    with pytest.raises(UserError, match=f"case {case.id}: what its preparation noted is damaged"):
        case.extra  # noqa: B018


def test_a_table_of_another_size_is_not_read(table, folder):
    (file,) = folder.glob("cases*")
    with file.open("rb+") as opened:
        opened.truncate(2**40)
    with pytest.raises(UserError, match=r"1099511627776 bytes, \d+ by the manifest"):
        store.read(folder)


def test_more_names_than_memory_are_refused(table, folder, monkeypatch):
    monkeypatch.setattr(documents, "large_list", lambda: 100)
    file = next(folder.glob("cases*"))
    with pytest.raises(ValueError, match="more names than fit"):
        cases.read(file, 3, 14)


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


def test_a_large_collection_opens_without_reading_its_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TABLE", 300)
    store.write_manifest(large_collection.collection(tmp_path, 300))
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".safetensors", ".json"]
    parsed, parse = [], documents.parse
    monkeypatch.setattr(documents, "parse", lambda text: parsed.append(text) or parse(text))
    # The fields of a row; all checks are of whole columns.
    monkeypatch.setattr(cases._Row, "__getitem__", lambda row, column: pytest.fail(column))
    assert len(store.read(tmp_path).cases) == 300
    assert len(parsed) == 3  # the manifest, ids and subjects, however many cases there are
