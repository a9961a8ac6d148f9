"""Headers of NRRD and MetaImage files, bounded before a C++ library sees the file.

The parsers of ITK trust a file: a long field overwrites their memory, a number of dimensions
allocates it, and a data file may be any path, a pattern or a pipe. Here the fields are parsed in
Python and held against the file's length, the machine's memory and the folder.

NRRD: teem.sourceforge.net/nrrd/format.html. MetaImage: itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ssl3d import limits
from ssl3d.data.readers import inflate
from ssl3d.data.readers.checks import read_bytes, reporting
from ssl3d.data.readers.inflate import DEFLATE_LIMIT

# Bytes of a header, and of a field that ITK parses. Notes (`key:=value` in NRRD) may be longer.
LARGE_HEADER, LARGE_FIELD = 1 << 20, 1 << 10
# Spatial axes, time and components.
MOST_DIMENSIONS = 5
# How far stored bytes expand at most, by encoding; one digit can stand for a value of eight bytes.
BZIP2_LIMIT = 50_000
NRRD_RATIOS = {"raw": 1, "gzip": DEFLATE_LIMIT, "gz": DEFLATE_LIMIT}
NRRD_RATIOS |= {"bzip2": BZIP2_LIMIT, "bz2": BZIP2_LIMIT, "hex": 1}
TEXT_LIMIT = 8
NRRD_RATIOS |= {"ascii": TEXT_LIMIT, "text": TEXT_LIMIT, "txt": TEXT_LIMIT}
# Bytes of a value.
NRRD_TYPES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort",
        "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t",
        "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int",
        "int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64",
        "uint64_t", "double"),
}  # fmt: skip
META_TYPES = {
    1: ("MET_CHAR", "MET_UCHAR"),
    2: ("MET_SHORT", "MET_USHORT"),
    4: ("MET_INT", "MET_UINT", "MET_FLOAT"),
    8: ("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"),
}


class Promise(NamedTuple):
    """What a header promises of the data.

    Attributes:
      sizes: values along each axis, components included.
      itemsize: bytes of a value.
      ratio: how far the stored bytes can expand at most.
      offset: first byte of the data in its file, at least.
      packed: bytes of the compressed data, if the header tells.
      zipped: whether the data are a zlib or gzip stream from `offset` on.
      file: a data file beside the header; None where the data follow the header.
    """

    sizes: tuple[int, ...]
    itemsize: int
    ratio: int
    offset: int
    packed: int
    zipped: bool
    file: str | None


def check(path: Path, voxels: bool = False) -> None:
    """Raises `UserError` for a file that no reader should open.

    Args:
      voxels: inflate compressed ones too; of damaged ones ITK would return whatever was in memory.
    """
    with reporting(path):
        head = read_bytes(path, LARGE_HEADER)
        promise = _nrrd(head) if head.startswith(b"NRRD") else _meta(head)
        values = math.prod(promise.sizes)
        data = path if promise.file is None else _beside(path, promise.file)
        with limits.open_regular(data) as file:
            stored = file.seek(0, 2) - promise.offset
        if promise.packed > stored or values * promise.itemsize > max(stored, 0) * promise.ratio:
            raise ValueError(
                f"truncated, {max(stored, 0)} bytes of data where the header promises "
                f"{promise.packed or values * promise.itemsize}"
            )
    # As stored and as float32.
    limits.check_memory(path, values * (promise.itemsize + 4), f"an image of {promise.sizes}")
    if voxels and promise.zipped:
        inflate.check_zipped(data, promise.offset, values * promise.itemsize)


def _nrrd(head: bytes) -> Promise:
    lines, end = _lines(head, b"")
    if not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise ValueError(f"unknown version {lines[0][:20]!r}")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        if not colon or len(line) > LARGE_FIELD:
            raise ValueError(f"not a field of a NRRD header: {line[:40]!r}")
        _add(fields, name.strip().lower().replace("datafile", "data file"), value)
    dimension = _count(_field(fields, "dimension"), MOST_DIMENSIONS)
    sizes = _sizes(_field(fields, "sizes"), dimension)
    encoding = _field(fields, "encoding").lower()
    if encoding not in NRRD_RATIOS:
        raise ValueError(f"encoding {encoding!r}; save it as raw or gzip")
    file = fields.get("data file")
    skipped = max(_whole(fields.get(key, "0")) for key in ("byte skip", "byteskip"))
    if skipped < -1 or (skipped and encoding != "raw"):
        raise ValueError(f"byte skip {skipped}; save it again without")
    if any(_whole(fields.get(key, "0")) for key in ("line skip", "lineskip")):
        raise ValueError("line skip; save it again without")
    itemsize = _itemsize(_field(fields, "type").lower(), NRRD_TYPES)
    start = end if file is None else 0
    zipped = encoding in ("gzip", "gz")
    return Promise(sizes, itemsize, NRRD_RATIOS[encoding], start + max(skipped, 0), 0, zipped, file)


def _meta(head: bytes) -> Promise:
    lines, end = _lines(head, b"ElementDataFile")
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or len(line) > LARGE_FIELD:
            raise ValueError(f"not a field of a MetaImage header: {line[:40]!r}")
        _add(fields, name.strip(), value)
    if fields.get("ObjectType", "Image") != "Image":
        raise ValueError(f"ObjectType {fields['ObjectType']!r}, not an image")
    dimension = _count(_field(fields, "NDims"), MOST_DIMENSIONS)
    sizes = _sizes(_field(fields, "DimSize"), dimension)
    channels = _count(fields.get("ElementNumberOfChannels", "1"), 1 << 16)
    file = _field(fields, "ElementDataFile")
    local = file.upper() == "LOCAL"
    skipped = _whole(fields.get("HeaderSize", "0"))
    if skipped < -1 or (skipped and local):
        raise ValueError(f"HeaderSize {skipped}; save it again without")
    packed = fields.get("CompressedData", "False").lower()[:1] in ("t", "1")
    text = fields.get("BinaryData", "True").lower()[:1] not in ("t", "1")
    return Promise(
        sizes=(*sizes, channels),
        itemsize=_itemsize(_field(fields, "ElementType").upper(), META_TYPES),
        ratio=DEFLATE_LIMIT if packed else TEXT_LIMIT if text else 1,
        offset=end if local else max(skipped, 0),
        packed=_whole(fields.get("CompressedDataSize", "0")),
        zipped=packed and skipped >= 0,
        file=None if local else file,
    )


def _lines(head: bytes, last: bytes) -> tuple[list[str], int]:
    """The lines of a header, and the offset behind it.

    Args:
      last: how the last line begins; empty where an empty line ends the header.
    """
    lines = list[str]()
    at = 0
    while at < len(head):
        end = head.find(b"\n", at)
        line = head[at : end if end >= 0 else len(head)]
        at = end + 1 if end >= 0 else len(head)
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        if "\0" in text or (not text.strip() and last):
            break
        if not text and not last:
            return lines, at
        lines.append(text)
        if last and line.lstrip().startswith(last):
            return lines, at
    # A header without data beside it may end with the file.
    if not last and at == len(head) < LARGE_HEADER and lines:
        return lines, at
    raise ValueError("no end of the header")


def _beside(path: Path, name: str) -> Path:
    """A data file in the folder of its header."""
    if "%" in name or name.split()[:1] in (["LIST"], ["SLICES"]) or not name:
        raise ValueError(f"data in a list or a pattern of files ({name[:40]!r}); save it as one")
    file = path.parent / name
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ValueError(f"its data file {name[:80]!r} leaves the folder of the header")
    return file


def _add(fields: dict[str, str], name: str, value: str) -> None:
    # ITK would take the other of two, or also a colon for the sign of equality.
    if name in fields or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_ ()/-]*", name):
        raise ValueError(f"the field {name[:40]!r} is there twice, or has no proper name")
    fields[name] = value.strip()


def _field(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise ValueError(f"no {name} in the header")
    return fields[name]


def _sizes(text: str, dimension: int) -> tuple[int, ...]:
    sizes = tuple(_count(word, 1 << 31) for word in text.split())
    if len(sizes) != dimension:
        raise ValueError(f"{len(sizes)} sizes of {dimension} dimensions")
    return sizes


def _count(text: str, most: int) -> int:
    count = _whole(text)
    if not 1 <= count <= most:
        raise ValueError(f"{count} where 1 to {most} is expected")
    return count


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _itemsize(name: str, types: Mapping[int, tuple[str, ...]]) -> int:
    for size, names in types.items():
        if name in names:
            return size
    raise ValueError(f"values of type {name[:40]!r} are not real numbers")
