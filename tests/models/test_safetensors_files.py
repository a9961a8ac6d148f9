import json
import os

import numpy as np
import pytest
from safetensors.numpy import save

from ssl3d.errors import UserError
from ssl3d.models import safetensors_files

ARRAYS = {
    "params/a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params/b/c": np.ones((), np.float16),
    "params/b/d": np.zeros((0, 2), np.int64),
}


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_the_library_writes_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(save(ARRAYS, {"note": "metadata"}))
    found, data = safetensors_files.read(file)
    assert data == file.read_bytes()
    header = safetensors_files.read_header(file)
    assert found.keys() == header.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert header[name] == (array.shape, array.dtype) == (found[name].shape, found[name].dtype)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (bytes(8), "with a header of 0"),
        (b"\xff" * 8, "with a header of"),
        (packed(b"[]"), "list"),
        (packed({"a": entry("F8_E4M3", offsets=(0, 2))}, bytes(2)), "of type 'F8_E4M3'"),
        (packed({"a": entry("BF16", offsets=(0, 4))}, bytes(4)), "of type 'BF16'"),
        (packed({"a": entry("complex")}, bytes(8)), "of type 'complex'"),
        (packed({"a": entry(["F32"])}, bytes(8)), "unhashable"),
        (packed({"a": entry(shape=(3,))}, bytes(8)), "has 8 bytes"),
        (packed({"a": entry(shape=(-2,))}, bytes(8)), "-2 is not a whole number"),
        (packed({"a": entry(shape=(1 << 40, 1 << 40))}, bytes(8)), "has 8 bytes"),
        (packed({"a": entry(shape=(2.0,))}, bytes(8)), "2.0 is not a whole number"),
        (packed({"a": entry(shape=(1,) * 99)}, bytes(8)), "has 8 bytes"),
        (packed({"a": entry(offsets=(0, 8, 9))}, bytes(8)), "too many values"),
        (packed({"a": entry(offsets=(8, 16))}, bytes(16)), "a gap or an overlap at byte 8"),
        (packed({"a": entry(), "b": entry()}, bytes(8)), "a gap or an overlap at byte 0"),
        (packed({"a": entry()}, bytes(7)), "7 bytes of arrays, the header promises 8"),
        (packed({"a": entry()}, bytes(9)), "9 bytes of arrays, the header promises 8"),
        (packed({"a": None}), ""),
        (packed({"a": entry(), "a/b": entry(offsets=(8, 16))}, bytes(16)), "inside the array 'a'"),
        (packed(b"[" * 9000), "nested"),
    ],
)
def test_a_header_that_promises_something_else_is_refused(tmp_path, data, words):
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        safetensors_files.read(file)
    assert f"{file}: cannot be read" in str(caught.value)
    assert words in str(caught.value)


def test_sparse_files_are_refused_by_their_size(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(save(ARRAYS))
    os.truncate(file, 20 << 30)
    with pytest.raises(UserError, match="bytes of arrays, the header promises 26"):
        safetensors_files.read(file)
    count = 400 << 30
    file.write_bytes(packed({"a": entry("U8", (count,), (0, count))}))
    os.truncate(file, file.stat().st_size + count)
    with pytest.raises(UserError, match="on this machine one file may take"):
        safetensors_files.read(file)
