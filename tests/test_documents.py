import json
import os

import pytest

from ssl3d import documents
from ssl3d.errors import UserError


def nested(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "codec can't decode"),
        (nested(documents.DEPTH), "nested more than 64 deep"),
        (nested(100_000), "nested more than 64 deep"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a": ' + b"9" * 30 + b"}", "a number of 30 digits"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "a number of 10000 digits"),
        (b'{"a": 1e999}', "beyond the range of float64"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number in JSON"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[1]", "a JSON object is expected, found list"),
        (b"null", "a JSON object is expected, found NoneType"),
    ],
)
def test_a_document_beyond_the_bounds_is_one_line(tmp_path, data, words):
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        documents.read_object(file, "write it again")
    assert str(caught.value).startswith(f"{file}: cannot be read (")
    assert words in str(caught.value)
    assert str(caught.value).endswith("; write it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [{}, {"a": [1, -2, 0.5, None, True, "ä \U0001f600", {"b": []}]}, {"name": "\udcff.nii.gz"}],
)
def test_other_documents_read_as_they_were_written(tmp_path, document):
    file = tmp_path / "a.json"
    for text in (json.dumps(document), "\ufeff" + json.dumps(document, indent=1)):
        file.write_text(text, encoding="utf-8")
        assert documents.read_object(file, "") == document


def test_what_is_no_file_of_usual_size_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        documents.read_object(tmp_path / "pipe", "")
    (tmp_path / "sparse").write_bytes(b"{}")
    os.truncate(tmp_path / "sparse", 20 << 30)
    with pytest.raises(UserError, match=r"sparse: cannot be read \(more than 16 MB\)"):
        documents.read_object(tmp_path / "sparse", "")
    with pytest.raises(UserError, match="sparse: cannot be read"):
        documents.read_lines(tmp_path / "sparse", "")


def test_a_missing_file_has_its_own_words(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        documents.read_object(tmp_path / "a.json", "", missing="no run here")
    with pytest.raises(UserError, match=r"a\.json: no such file; train again"):
        documents.read_object(tmp_path / "a.json", "train again")


def test_the_last_of_the_lines_may_be_cut_short(tmp_path):
    file = tmp_path / "a.jsonl"
    for text, count in (
        ("", 0),
        ('{"a": 1}\n', 1),
        ('{"a": 1}\n{"a": 2}', 2),
        ('{"a": 1}\n{"a"', 1),
    ):
        file.write_text(text)
        assert len(documents.read_lines(file, "")) == count


@pytest.mark.parametrize("line", [b"\xff", b'{"a"', b"5", b"", b"[" * 5000])
def test_another_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 cannot be read .*; remove it"):
        documents.read_lines(file, "remove it")


@pytest.mark.parametrize(
    "use",
    [
        lambda: {}["rank"],
        lambda: int("many"),
        lambda: int(None),
        lambda: int(float("inf")),
        lambda: 10**400 / 3,
        lambda: None.get("a"),
        lambda: documents.names("abc"),
        lambda: documents.names([1]),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path, use):
    with (
        pytest.raises(UserError, match=r"a\.json: a field is missing or of the wrong type"),
        documents.fields(tmp_path / "a.json", ""),
    ):
        use()


def test_an_error_of_a_field_gets_the_name_of_the_file(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.json: case id 'a/b' cannot be a file name"),
        documents.fields(tmp_path / "a.json", ""),
    ):
        raise UserError("case id 'a/b' cannot be a file name")
