"""JSON files, bounded: their size, depth and numbers. Every fault is one line that names the file.

document = read_object(path, "export it again")
with fields(path, "export it again"):
    rank = int(document["rank"])
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ssl3d import limits
from ssl3d.errors import UserError

# Bytes; far more than any file of settings. Lists of cases get `large_list`.
LARGE = 16 * 2**20
# Nested lists and objects; the deepest file of the project has 8.
DEPTH = 64
# Characters of a whole number of 64 bits; `float` of a longer one could overflow.
DIGITS = 20
# Memory of a parsed document per byte of the file, at most.
EXPANSION = 32
# What a value of the wrong type or size makes Python raise.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_object(path: Path, remedy: str, missing: str = "", large: int = 0) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      remedy: what the user can do about a damaged file.
      missing: the message for no such file, if not "missing; `remedy`".
      large: bytes from which the file is refused, if not `LARGE`.

    Raises:
      UserError: missing, not a regular file, too large or deep, or not a JSON object.
    """
    if missing and not os.path.exists(path):
        raise UserError(missing)
    data = read_bytes(path, remedy, large)
    try:
        document = parse(data)
        if not isinstance(document, dict):
            raise ValueError(f"a JSON object is expected, found {type(document).__name__}")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    return document


def read_bytes(path: Path, remedy: str, large: int = 0) -> bytes:
    """The content of a text file. Raises `UserError` as `read_object`."""
    large = large or LARGE
    try:
        with limits.open_regular(path) as file:
            data = file.read(large + 1)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    if len(data) > large:
        raise UserError(f"{path}: cannot be read (more than {large // 2**20} MB); {remedy}")
    return data


def read_text(path: Path, remedy: str) -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises `UserError`."""
    data = read_bytes(path, remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The JSON objects in a file of one per line, without a last line that a kill cut short.

    Raises:
      UserError: not a regular file, too large, or another line that is no JSON object.
    """
    lines = read_bytes(path, remedy, large_list()).split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            document = parse(line)
            if not isinstance(document, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number == len(lines):  # behind the last line end: nothing, or a part of a line
                break
            raise UserError(f"{path}: line {number} cannot be read ({error}); {remedy}") from None
        found.append(document)
    return found


def large_list() -> int:
    """Bytes of the largest file that lists cases: as much as can be parsed in memory."""
    return limits.memory_per_file() // EXPANSION


def parse(data: bytes) -> Any:
    """The document in JSON text. Raises ValueError: not JSON, or beyond the bounds."""
    try:
        document = json.loads(
            data.decode("utf-8-sig"),
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check_depth(document)
    if _SURROGATE.search(data):
        # Half a character has no encoding, but for a byte of a file name that is not UTF-8.
        json.dumps(document, ensure_ascii=False).encode(errors="surrogateescape")
    return document


@contextlib.contextmanager
def fields(path: Path, remedy: str) -> Iterator[None]:
    """Turns what wrong fields of a document make Python raise into one line naming the file.

    The block's own `UserError`s get the name of the file.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: a field is missing or of the wrong type ({type(error).__name__}: {reason}); "
            f"{remedy}"
        ) from None


def names(value: Any) -> tuple[str, ...]:
    """A list of strings as a tuple. Raises TypeError."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"a list of names is expected, found {str(value)[:40]}")
    return tuple(value)


def _check_depth(document: Any) -> None:
    level, depth = [document], 0
    while level:
        level = [
            value
            for parent in level
            if isinstance(parent, dict | list)
            for value in (parent.values() if isinstance(parent, dict) else parent)
        ]
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of float64")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")
