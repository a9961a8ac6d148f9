import gzip

import numpy as np
import pytest

from ssl3d.data.readers import inflate
from ssl3d.errors import UserError

DATA = np.random.default_rng(0).integers(0, 9, 3_000_000).astype(np.uint8).tobytes()


def blocks(data):
    parts = [data[start : start + 60_000] for start in range(0, len(data), 60_000)]
    return b"".join(map(gzip.compress, parts))


def two_members(data):
    return gzip.compress(data[:200]) + bytes(9) + gzip.compress(data[200:], 1)


@pytest.mark.parametrize("size", [1, 348, 100_000, len(DATA) - 1, len(DATA), len(DATA) + 10])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, two_members, blocks])
@pytest.mark.parametrize("padding", [0, 70_000])
def test_the_start_of_the_content(tmp_path, pack, size, padding):
    file = tmp_path / "a"
    data = DATA[: size + 500_000]  # a stream that goes on farther is refused
    file.write_bytes(pack(data) + bytes(padding if pack is not bytes else 0))
    assert inflate.content(file, size).tobytes() == data[:size]
    assert inflate.most_bytes(file) >= len(data)
    head = inflate.head(file, size)
    assert head == data[: len(head)]
    assert len(head) >= min(size, 30_000)


@pytest.mark.parametrize("keep", [3, 17, 5000, -9, -1])
def test_truncated_data_never_passes(tmp_path, keep):
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(DATA[:500_000])[:keep])
    with pytest.raises(UserError, match=r"a\.gz: truncated gzip data"):
        inflate.content(file, 100)


def test_a_flipped_bit_behind_the_promise_is_found(tmp_path):
    file = tmp_path / "a.gz"
    packed = bytearray(gzip.compress(DATA[:500_000], 0))
    packed[-100] ^= 1
    file.write_bytes(packed)
    with pytest.raises(UserError, match=r"a\.gz: damaged gzip data"):
        inflate.content(file, 1000)


def test_a_stream_far_beyond_the_promise_is_refused(tmp_path):
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(DATA))
    with pytest.raises(UserError, match="inflates to far more than the 1000 bytes"):
        inflate.content(file, 1000)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a").touch()
    for read in (inflate.content, inflate.head):
        with pytest.raises(UserError, match="the file is empty"):
            read(tmp_path / "a", 10)
