"""C++ image libraries in a process of their own, so that a file that crashes one is only named.

    array = call(path, "ssl3d.data.readers.itk", "read_here", path, rank)

calls a function of a module in a child process, which is started on the first call and kept. Its
memory is limited. Where it dies or does not answer, a `UserError` names the file, and the next call
starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssl3d import limits
from ssl3d.errors import RunError, UserError

# Without an answer for so long, a file is given up.
SECONDS = 300.0
# Libraries and their threads, beside the images.
_ROOM = 2 << 30
_READY = b"ready"
_LENGTH = struct.Struct("<Q")

_lock = threading.Lock()
_child: _Child | None = None


def call(path: Path, module: str, function: str, *arguments: Any) -> Any:
    """What the function of the module returns in the child process.

    Args:
      path: the file to name.

    Raises:
      UserError: the function's own, or its process died or did not answer in time.
      RunError: the process does not start.
    """
    global _child
    with _lock:
        if _child is None or not _child.is_alive():
            _child = _Child()
        try:
            found, failed = _child.ask((os.getcwd(), module, function, arguments))
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            reason = _child.end(error)
            _child = None
            raise UserError(f"{path}: {reason}; damaged or hostile, remove it") from None
        except BaseException as error:  # Ctrl-C: the answer would be the next call's
            _child.end(error)
            _child = None
            raise
    if failed:
        raise UserError(found)
    return found


@atexit.register
def _close() -> None:
    if _child is not None and _child.owner == os.getpid():
        _child.end()


class _Child:
    """The process, and the protocol: a length, a pickle, and the arrays' bytes behind it."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"import {__name__} as own; own.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": paths},
        )
        try:
            ready = self._receive(len(_READY))
        except (EOFError, TimeoutError) as error:
            raise RunError(
                f"the process that reads images cannot start: {self.end(error)}"
            ) from None
        assert bytes(ready) == _READY

    def is_alive(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def ask(self, question: Any) -> tuple[Any, bool]:
        assert self.process.stdin
        _send(self.process.stdin.fileno(), question)
        sizes = pickle.loads(self._receive(_LENGTH.unpack(self._receive(_LENGTH.size))[0]))
        answer, *arrays = [self._receive(size) for size in sizes]
        return pickle.loads(answer, buffers=arrays)

    def end(self, error: BaseException | None = None) -> str:
        """Ends the process; why it gave no answer."""
        if not isinstance(error, EOFError | BrokenPipeError):
            self.process.kill()
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        if isinstance(error, TimeoutError):
            return f"not read within {SECONDS:g} s"
        if -status == signal.SIGKILL:
            return "the process that read it was killed, most likely for lack of memory"
        if status < 0:
            return f"crashed the library that reads it ({signal.Signals(-status).name})"
        return f"ended the process that read it (status {status})"

    def _receive(self, size: int) -> np.ndarray:
        """The next `size` bytes, uint8. Raises EOFError and TimeoutError."""
        assert self.process.stdout
        pipe = self.process.stdout.fileno()
        data = np.empty(size, np.uint8)
        at, last = 0, time.monotonic()
        while at < size:
            if not select.select([pipe], [], [], max(last + SECONDS - time.monotonic(), 0))[0]:
                raise TimeoutError
            count = os.readv(pipe, [memoryview(data)[at:]])
            if not count:
                raise EOFError
            at, last = at + count, time.monotonic()
        return data


def _send(pipe: int, message: Any) -> None:
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(data), *(array.raw() for array in arrays)]
    sizes = pickle.dumps([part.nbytes for part in parts])
    for part in (memoryview(_LENGTH.pack(len(sizes)) + sizes), *parts):
        while part.nbytes:
            part = part[os.write(pipe, part) :]


def _answer(questions: int, answers: int) -> None:
    os.write(answers, _READY)
    with os.fdopen(questions, "rb") as pipe:
        while head := pipe.read(_LENGTH.size):
            sizes = pickle.loads(pipe.read(_LENGTH.unpack(head)[0]))
            data, *arrays = [pipe.read(size) for size in sizes]
            folder, module, function, arguments = pickle.loads(data, buffers=arrays)
            os.chdir(folder)  # paths may be relative
            called = getattr(importlib.import_module(module), function)
            try:
                answer = called(*arguments), False
            except UserError as error:
                answer = str(error), True
            _send(answers, answer)
            del answer


def _limit_memory() -> None:
    most = 2 * limits.memory_per_file() + _ROOM
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or soft > most:
        with contextlib.suppress(OSError, ValueError):  # not on every system
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve() -> None:
    """Answers questions until the parent closes the pipe or ends; the child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    questions, answers = os.dup(0), os.dup(1)
    # The libraries print to 1 and 2, several lines that name no file.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    _limit_memory()
    _answer(questions, answers)
