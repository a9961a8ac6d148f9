"""The text form of HLO: its computations, and their instructions with operands and shapes.

Of compiled programs and others; shapes have the padding of TPUs' tiles and the memory they are in.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

# Bytes of the element types that do not name their bits, as f8e4m3fn and u32 do.
_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_BITS = re.compile(r"(?:b?f|[suc])(\d+)\w*")
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+)\s.*\{$|^(ENTRY )?%?([\w.\-]+) \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_TILED = re.compile(r"\{([\d,]*):T\(([\d,]+)\)")


class Shape(NamedTuple):
    """An array: its element type, sides, elements with the padding of tiles, and its place."""

    dtype: str
    sides: tuple[int, ...]
    stored: int
    in_memory: bool = True  # the device's main memory

    @property
    def elements(self) -> int:
        return math.prod(self.sides)

    @property
    def bytes(self) -> int:
        return self.stored * (element_bytes(self.dtype) or 0) * self.in_memory


class Instruction(NamedTuple):
    """A line of HLO; `shapes` are those of its result, several of a tuple.

    A line of an unknown form has no opcode, and is its own attributes.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


Computation = Mapping[str, Instruction]


def element_bytes(dtype: str) -> int | None:
    """Bytes of an element, whole ones; None of an unknown type."""
    found = _BITS.fullmatch(dtype)
    return -(-int(found[1]) // 8) if found else _BYTES.get(dtype)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Instructions by name, by computation; and the name of the entry computation, "" if none."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if current is None:
            if line.endswith("{") and not line.startswith(" ") and (found := _HEAD.match(line)):
                name = found[2] or found[4]
                current = computations.setdefault(name, {})
                entry = name if found[1] or found[3] else entry
        elif line.startswith("}"):
            current = None
        elif line.strip():
            instruction = _line(line)
            current[instruction.name] = instruction
    return computations, entry


def _line(line: str) -> Instruction:
    found = _INSTRUCTION.match(line)
    try:
        if found:
            return _instruction(found[2], line[found.end() :], bool(found[1]))
    except (ValueError, IndexError):  # a part is missing, or a layout of another form
        pass
    return Instruction(line, (), "", (), line.strip(), False)


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """`rest` is what follows the equals sign: type, opcode, (operands), attributes."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    operands = tuple(
        part.split()[-1].lstrip("%") for part in _split(rest[opened + 1 : closed]) if part.strip()
    )
    shapes = tuple(_shape(*found.groups()) for found in _SHAPE.finditer(kind))
    return Instruction(name, shapes, rest[:opened], operands, rest[closed + 1 :], root)


def _shape(dtype: str, sides: str, layout: str | None) -> Shape:
    """`layout` is {order of the axes, minor first:T(tile)S(memory)}; TPUs pad to whole tiles."""
    lengths = tuple(int(side.lstrip("<=")) for side in sides.split(",") if side)
    stored = math.prod(lengths)
    if found := _TILED.match(layout or ""):
        order, tile = ([int(n) for n in part.split(",") if n] for part in found.groups())
        stored = 1
        for axis, step in itertools.zip_longest(order, tile[::-1][: len(order)], fillvalue=1):
            stored *= -(-lengths[axis] // step) * step
    # S(n) with n > 0 is a scratch memory on the chip.
    return Shape(dtype, lengths, stored, not re.search(r"S\([1-4]\)", layout or ""))


def _closing(text: str, opened: int) -> int:
    """The place of the parenthesis that closes the one at `opened`."""
    depth = 0
    for place in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _split(text: str) -> list[str]:
    """The parts of a list, separated by commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
