"""A case of a prepared data set, as an object of its own or as a row of a table of many.

Below the size that `store` sets, a manifest lists its cases as JSON objects. A larger collection
has them in columns, one tensor of a safetensors file each, which open in a fraction of the time and
memory: a row reads its fields from the columns when they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ssl3d import documents
from ssl3d.data.integrity import Digest
from ssl3d.errors import UserError

LABELLED_SPLITS = ("train", "val", "test")
SPLITS = (*LABELLED_SPLITS, "unlabelled")

# An id is a file name: no separators, no leading dot, no characters special to shells or Windows.
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
# The columns of `Case.files`.
_FILES = ("image", "label")
# Columns of JSON text.
_TEXTS = ("id", "subjects", "extra")
# No value: of a grade, the size of a file and the foreground.
_NONE = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One image of the data set.

    Attributes:
      id: unique name, also the stem of the files.
      subject: the person imaged; splits and negatives are by subject.
      split: one of `SPLITS`.
      shape: *S of the stored image, in voxels (pixels).
      channels: C of the stored image.
      spacing: mm per voxel along each axis of the stored image.
      affine: voxel of the stored image -> mm in RAS+, rows of [r + 1, r + 1].
      labelled: whether `labels/<id>.npy` exists.
      grade: class index of the whole image, or None.
      order: rank of the subject in the seeded shuffle of its split; a label fraction takes the
        subjects of the lowest ranks, so that smaller fractions are nested in larger ones.
      foreground: bounding box of the foreground, ((start, stop), ...) in voxels.
      files: "image" and "label" -> size and SHA-256 of the file; empty if written by a version
        that kept none.
      extra: JSON object of the preparation (source files, checksums, geometry, scaling, voxels
        per class); empty for a phantom.
    """

    id: str
    subject: str
    split: str
    shape: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]
    labelled: bool = False
    grade: int | None = None
    order: int = 0
    foreground: tuple[tuple[int, int], ...] | None = None
    files: dict[str, Digest] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


_NAMES = tuple(field.name for field in dataclasses.fields(Case))


def check_id(case_id: str) -> str:
    """Returns the id. Raises `UserError`: not a file name inside the folder."""
    if not ID_PATTERN.fullmatch(case_id):
        raise UserError(
            f"case id {case_id!r} cannot be a file name: use letters, digits and . _ + - only, "
            "starting with a letter or digit"
        )
    return case_id


def case_from(entry: dict[str, Any]) -> Case:
    """A case from its JSON object. Raises `UserError`, or one of `documents.MALFORMED`."""
    return Case(
        id=check_id(str(entry["id"])),
        subject=str(entry["subject"]),
        split=str(entry["split"]),
        shape=tuple(int(n) for n in entry["shape"]),
        channels=int(entry["channels"]),
        spacing=tuple(float(x) for x in entry["spacing"]),
        affine=tuple(tuple(float(x) for x in row) for row in entry["affine"]),
        labelled=bool(entry["labelled"]),
        grade=None if entry["grade"] is None else int(entry["grade"]),
        order=int(entry["order"]),
        foreground=(
            None
            if entry["foreground"] is None
            else tuple((int(a), int(b)) for a, b in entry["foreground"])
        ),
        files={
            kind: Digest(int(size), str(sha256))
            for kind, (size, sha256) in dict(entry.get("files", {})).items()
        },
        extra=dict(entry.get("extra", {})),
    )


class _Table(NamedTuple):
    """The columns of N cases: those of `_layout`, with names instead of bytes."""

    ids: list[str]
    subjects: list[str]
    columns: dict[str, np.ndarray]
    extra: Any  # a slice of the file, which is read when it is asked for


class _Row(Case):
    """A case whose fields are in a table. Equal to a `Case` of the same fields; pickles as one."""

    __slots__ = ("_number", "_table")
    _number: int
    _table: _Table

    def __new__(cls, *fields: Any, **named: Any) -> Any:
        return Case(*fields, **named)  # `dataclasses.replace` makes an object of its own

    @staticmethod
    def of(table: _Table, number: int) -> Case:
        row = object.__new__(_Row)
        object.__setattr__(row, "_table", table)
        object.__setattr__(row, "_number", number)
        return row

    def __getitem__(self, column: str) -> Any:
        return self._table.columns[column][self._number].tolist()

    @property
    def id(self) -> str:
        return self._table.ids[self._number]

    @property
    def subject(self) -> str:
        return self._table.subjects[self._table.columns["subject"][self._number]]

    @property
    def split(self) -> str:
        return SPLITS[self._table.columns["split"][self._number]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self["shape"])

    @property
    def channels(self) -> int:
        return self["channels"]

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(self["spacing"])

    @property
    def affine(self) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, self["affine"]))

    @property
    def labelled(self) -> bool:
        return bool(self["labelled"])

    @property
    def grade(self) -> int | None:
        grade = self["grade"]
        return None if grade == _NONE else grade

    @property
    def order(self) -> int:
        return self["order"]

    @property
    def foreground(self) -> tuple[tuple[int, int], ...] | None:
        box = self["foreground"]
        return None if box[0][0] == _NONE else tuple((a, b) for a, b in box)

    @property
    def files(self) -> dict[str, Digest]:
        hashes = self._table.columns["sha256"][self._number]
        found = zip(_FILES, self["size"], hashes, strict=True)
        return {k: Digest(n, sha256.tobytes().hex()) for k, n, sha256 in found if n != _NONE}

    @property
    def extra(self) -> dict[str, Any]:
        first, end = self["extra_at"]
        try:
            return dict(documents.parse(self._table.extra[first:end].tobytes()))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"case {self.id}: what its preparation noted is damaged ({reason})"
            ) from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Case):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _NAMES)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Case, tuple(getattr(self, name) for name in _NAMES)


def _layout(rank: int, count: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Column -> type and shape."""
    return {
        "subject": (np.int32, (count,)),
        "split": (np.uint8, (count,)),
        "shape": (np.int32, (count, rank)),
        "channels": (np.int32, (count,)),
        "spacing": (np.float64, (count, rank)),
        "affine": (np.float64, (count, rank + 1, rank + 1)),
        "labelled": (np.uint8, (count,)),
        "grade": (np.int32, (count,)),
        "order": (np.int64, (count,)),
        "foreground": (np.int32, (count, rank, 2)),
        "size": (np.int64, (count, len(_FILES))),
        "sha256": (np.uint8, (count, len(_FILES), 32)),
        "extra_at": (np.int64, (count, 2)),
    }


def write(path: Path, cases: Sequence[Case], rank: int) -> None:
    """Writes a table; equal cases give equal bytes.

    Raises:
      ValueError: values that are not finite, or cases of different ranks.
    """
    subjects = sorted({case.subject for case in cases})
    number = {name: i for i, name in enumerate(subjects)}
    digests = [[case.files.get(kind) for kind in _FILES] for case in cases]
    extra = [_json(case.extra) for case in cases]
    ends = np.cumsum([len(text) for text in extra], dtype=np.int64)
    nowhere = ((_NONE, _NONE),) * rank
    values: dict[str, Any] = {
        "subject": [number[case.subject] for case in cases],
        "split": [SPLITS.index(case.split) for case in cases],
        "grade": [_NONE if case.grade is None else case.grade for case in cases],
        "foreground": [case.foreground or nowhere for case in cases],
        "size": [[_NONE if d is None else d.size for d in pair] for pair in digests],
        "sha256": [[list(bytes.fromhex(d.sha256) if d else bytes(32)) for d in p] for p in digests],
        "extra_at": np.stack([ends - [len(text) for text in extra], ends], axis=-1),
    }
    columns: dict[str, np.ndarray] = {
        "id": _bytes(_json([case.id for case in cases])),
        "subjects": _bytes(_json(subjects)),
        "extra": _bytes(b"".join(extra)),
    }
    for name, (dtype, shape) in _layout(rank, len(cases)).items():
        column = values[name] if name in values else [getattr(case, name) for case in cases]
        columns[name] = np.ascontiguousarray(np.asarray(column, dtype).reshape(shape))
    if not all(np.isfinite(columns[name]).all() for name in ("spacing", "affine")):
        raise ValueError("not a number or infinite: JSON would have no such spacing or affine")
    safetensors.numpy.save_file(columns, path)


def read(path: Path, rank: int, count: int) -> tuple[Case, ...]:
    """The cases in a table.

    Raises:
      UserError: an unsafe id.
      ValueError: not a table of so many cases of this rank.
    """
    layout = _layout(rank, count)
    with safetensors.safe_open(path, framework="numpy") as file:
        if set(file.keys()) != {*_TEXTS, *layout}:
            raise ValueError("other columns than those of a table of cases")
        columns = {name: file.get_tensor(name) for name in layout}
        texts = {name: file.get_slice(name) for name in _TEXTS}
        if any((t.get_dtype(), len(t.get_shape())) != ("U8", 1) for t in texts.values()):
            raise ValueError("a column of text is not of bytes")
        sizes = {name: text.get_shape()[0] for name, text in texts.items()}
        if max(sizes["id"], sizes["subjects"]) > documents.large_list():
            raise ValueError("more names than fit in the memory")
        ids, subjects = (documents.parse(file.get_tensor(n).tobytes()) for n in ("id", "subjects"))
    for name, (dtype, shape) in layout.items():
        if (columns[name].dtype, columns[name].shape) != (np.dtype(dtype), shape):
            raise ValueError(f"{name}: {columns[name].dtype} {columns[name].shape}")
    for name, names, most in (("id", ids, count), ("subjects", subjects, math.inf)):
        if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
            raise ValueError(f"{name}: no list of names")
        if len(names) != most != math.inf:
            raise ValueError(f"{name}: {len(names)} of {most} cases")
    for name, most in (("subject", len(subjects)), ("split", len(SPLITS))):
        if not ((columns[name] >= 0) & (columns[name] < most)).all():
            raise ValueError(f"{name}: numbers out of range")
    first, end = columns["extra_at"].T
    if not ((first >= 0) & (first <= end) & (end <= sizes["extra"])).all():
        raise ValueError("extra_at: beyond the column")
    for name in ids:
        check_id(name)
    table = _Table(ids, subjects, columns, texts["extra"])
    return tuple(_Row.of(table, number) for number in range(count))


def sound(cases: Sequence[Case], classes: int, channels: int) -> bool:
    """Whether the rows of one table are consistent, as `store` checks each case of a list.

    False for any other sequence.
    """
    if not cases or not isinstance(cases[0], _Row):
        return False
    table = cases[0]._table
    column = table.columns
    boxes, some = column["foreground"], column["foreground"][:, 0, 0] != _NONE
    first, end = boxes[some, :, 0], boxes[some, :, 1]
    split_of = np.full(len(table.subjects), 255)
    split_of[column["subject"]] = column["split"]
    return bool(
        len(set(table.ids)) == len(cases) == len(table.ids)
        and (column["shape"] > 0).all()
        and (np.isfinite(column["spacing"]) & (column["spacing"] > 0)).all()
        and (column["channels"] == channels).all()
        and np.isfinite(column["affine"]).all()
        and ((first >= 0) & (first < end) & (end <= column["shape"][some])).all()
        and ((column["grade"] >= _NONE) & (column["grade"] < classes)).all()
        and len(set(table.subjects)) == len(table.subjects)
        and (split_of[column["subject"]] == column["split"]).all()
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)
