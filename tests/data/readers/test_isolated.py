import threading
from pathlib import Path

import numpy as np
import pytest

from ssl3d.data.readers import isolated
from ssl3d.errors import UserError

FILE = Path("scans/a.nrrd")


@pytest.mark.parametrize(
    ("module", "function", "arguments", "words"),
    [
        ("os", "abort", (), "crashed the library that reads it (SIGABRT)"),
        ("ctypes", "string_at", (0,), "crashed the library that reads it (SIGSEGV)"),
        ("os", "_exit", (5,), "ended the process that read it (status 5)"),
        ("operator", "truediv", (1, 0), "ended the process that read it (status 1)"),
    ],
)
def test_a_crash_names_the_file_and_the_next_call_works(module, function, arguments, words):
    with pytest.raises(UserError) as caught:
        isolated.call(FILE, module, function, *arguments)
    assert str(caught.value).startswith(f"{FILE}: {words}")
    assert isolated.call(FILE, "operator", "add", 2, 3) == 5


def test_a_library_that_hangs_is_ended(monkeypatch):
    isolated.call(FILE, "os", "getpid")
    monkeypatch.setattr(isolated, "SECONDS", 0.2)
    with pytest.raises(UserError, match=r"a\.nrrd: not read within 0\.2 s"):
        isolated.call(FILE, "time", "sleep", 60)


def test_memory_is_limited():
    with pytest.raises(UserError, match=r"a\.nrrd: ended the process"):
        isolated.call(FILE, "builtins", "bytes", 1 << 45)


def test_arrays_cross_unchanged_and_writable():
    for array in (np.arange(24.0).reshape(2, 3, 4), np.zeros((3, 0)), np.eye(3).T[::2]):
        found = isolated.call(FILE, "numpy", "copy", array)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
        found[...] = 1


def test_the_process_is_kept_and_shared_by_threads():
    first = isolated.call(FILE, "os", "getpid")
    found = []

    def ask(number):
        found.append(isolated.call(FILE, "operator", "mul", number, 2))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(0, 40, 2))
    assert isolated.call(FILE, "os", "getpid") == first


def test_an_interrupt_leaves_no_answer_behind(monkeypatch):
    isolated.call(FILE, "os", "getpid")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolated._Child, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            isolated.call(FILE, "operator", "add", 2, 3)
    assert isolated.call(FILE, "operator", "add", 20, 30) == 50
