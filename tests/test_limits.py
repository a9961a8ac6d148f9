import os

import pytest

from ssl3d import limits
from ssl3d.errors import UserError
from tests.support import fuzz


def test_the_memory_of_the_machine_is_shared():
    whole = limits.machine_memory()
    assert 1 << 28 < whole < 1 << 48
    assert limits.memory_per_file() <= whole // 2


def test_a_limit_of_the_process_counts():
    with fuzz.limited_memory():
        assert limits.memory_per_file() <= limits.machine_memory() // limits.SHARE


def test_more_than_the_share_is_refused(tmp_path):
    allowed = limits.memory_per_file()
    limits.check_memory(tmp_path / "a.nii", allowed, "an image")
    with pytest.raises(UserError, match=r"a\.nii: an image would take .* GB of memory"):
        limits.check_memory(tmp_path / "a.nii", allowed + 1, "an image")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with limits.open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "/dev/zero"):
        with pytest.raises(UserError, match="not a regular file"):
            limits.open_regular(tmp_path / name)
    for name in ("nothing", "file/inside"):
        with pytest.raises(UserError, match="no such file"):
            limits.open_regular(tmp_path / name)
    for name in ("a\0b", "a" * 5000):
        with pytest.raises(UserError, match="cannot be read"):
            limits.open_regular(tmp_path / name)
