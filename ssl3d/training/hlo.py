"""Reads the HLO text of a program: its operations with their flops, bytes and collectives.

An operation is what the device runs at once: a fusion, a convolution, a collective. Its bytes are
those of its operands and results in the device's main memory, with the padding of TPUs' tiles; what
a fusion slices out of an operand counts, not the operand. Flops are those of convolutions and
matrix products. The body of a loop counts as often as it runs.

XLA changes this text from version to version. What is counted and has a form that is not known here
is named in `Operation.unread`: it would cost nothing otherwise, and nobody would notice.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ssl3d.training.hlo_text import Computation, Instruction, Shape, element_bytes, parse

# What costs nothing, and what only moves data, by opcode.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
_MOVES = {"copy", "copy-start", "transpose", "reshape", "pad", "slice", "slice-start", "convert"}
_MOVES |= {"concatenate", "broadcast", "dynamic-slice", "dynamic-update-slice", "reverse"}
_CALLERS = ("while", "conditional", "call", "async-start")
_SLICES = ("dynamic-slice", "slice", "gather")
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# Classes of operations, in the order of a report.
CLASSES = ("convolutions", "matrix products", "norms", "copies", "other", "collectives")

_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"\bbranch_computations=\{([^}]*)\}|\b(?:true|false)_computation=%?([\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_WINDOW = re.compile(r"window=\{size=([\dx]+)")
_DILATION = re.compile(r"lhs_dilate=([\dx]+)")
_FEATURE = re.compile(r'"output_feature_dim":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# `models.weight_gradient`, compiled and not: JAX's name of what it may divide among devices.
_NATIVE = ("ssl3d_weight_gradient", "CustomSPMDPartitioning")
# Custom calls without products.
_NO_PRODUCT = re.compile(
    r"xla\.sdy|Sharding|SPMD|TopK|AllocateBuffer|GatherScatterIndices|AssumeGatherIndices"
)
# Letters of an unknown form that are shown.
_SHOWN = 100
# Its axes in square or pointed brackets, perhaps the order of its devices; the axes of a group.
_MESH = re.compile(r"replica_groups=@?mesh[\[<]([^\]>]*)[\]>][^{]*\{([^}]*)\}")
_SIDE = re.compile(r"'?([\w.\-]+)'?=(\d+)")
_AXIS = re.compile(r"'?([\w.\-]+)'?(?::\(\d+\)(\d+))?")  # all of an axis, or a part
_LISTED = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})")
_ALL = re.compile(r"\breplica_groups=\{\}")
_DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")
_JOINING = re.compile(r"\b(?:replica_groups|source_target_pairs)=\S*")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


class Operation(NamedTuple):
    """What a device runs at once.

    Attributes:
      kind: one of `CLASSES`.
      times: how often it runs in a call of the program.
      flops, bytes: each time; the bytes of a collective are those that it combines.
      dtype: of the factors of a convolution or matrix product, else of the result.
      collective: one of `COLLECTIVES`, or "".
      group: devices that take part in a collective.
      name: where it comes from in the traced function, as JAX names it.
      cycles: what a TPU's compiler expects it to take each time, else 0.
      unread: what of its text has an unknown form, so that it costs more than is said here; or "".
    """

    kind: str
    times: int
    flops: float
    bytes: float
    dtype: str
    collective: str = ""
    group: int = 1
    name: str = ""
    cycles: int = 0
    unread: str = ""


def operations(text: str) -> list[Operation]:
    """The operations of an HLO module in text form, compiled or not."""
    if devices := _DEVICES.findall(text.partition("\n")[0]):
        count = math.prod(map(int, devices))
        text = _ALL.sub(f"replica_groups=[1,{count}]", text)
    computations, entry = parse(text)
    return list(_operations(computations, entry, 1))


def unread(found: Iterable[Operation]) -> list[str]:
    """A line for each unknown form among operations, which cost more than they say."""
    number = collections.Counter(one.unread for one in found if one.unread)
    return [
        f"the figures are too low: a form of XLA's text is unknown, {what} ({count} operations)"
        for what, count in number.items()
    ]


def flops(found: Iterable[Operation]) -> float:
    """Of all operations together, each as often as it runs."""
    return sum(one.flops * one.times for one in found)


def memory_bytes(found: Iterable[Operation]) -> float:
    """The same for the bytes in a device's memory, without those of collectives."""
    return sum(one.bytes * one.times for one in found if not one.collective)


def traced(lowered: Any) -> list[Operation]:
    """Those of a lowered program (`jax.stages.Lowered`) on all devices, before any optimisation."""
    return operations(lowered.compiler_ir("hlo").as_hlo_text())


def _operations(
    computations: Mapping[str, Computation], name: str, times: int
) -> Iterator[Operation]:
    if name not in computations:
        yield Operation("other", times, 0, 0, "", unread=f"computation {name or 'ENTRY'}")
        return
    own = computations[name]
    for one in own.values():
        called = _called(one)
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            continue
        if one.opcode in _CALLERS:
            trips = _trips(computations, one) if one.opcode == "while" else 1
            if not called or not trips:
                what = f"{one.opcode}{one.attributes[:_SHOWN]}"
                yield Operation("other", times, 0, 0, "", unread=what)
            for inner in called:
                yield from _operations(computations, inner, times * (trips or 1))
        else:
            yield _operation(computations, own, one, times)
            if one.opcode == "fusion":  # TPUs fuse collectives with what they overlap
                for where, each in _fused(computations, one):
                    if each.opcode.removesuffix("-start") in COLLECTIVES:
                        yield _operation(computations, where, each, times)


def _called(one: Instruction, among: Container[str] | None = None) -> list[str]:
    """The computations that an instruction runs: those `among` others, or all."""
    found = _CALLED.findall(one.attributes)
    if one.opcode == "conditional":
        branches = ",".join(map("".join, _BRANCHES.findall(one.attributes)))
        found = [name.strip().lstrip("%") for name in branches.split(",") if name.strip()]
    return [name for name in found if among is None or name in among]


def _operation(
    computations: Mapping[str, Computation], own: Computation, one: Instruction, times: int
) -> Operation:
    name = _origin(one)
    collective = one.opcode.removesuffix("-start")
    if collective in COLLECTIVES:
        size = sum(_whole(shape) for shape in _operand_shapes(own, one))
        group = _group(one.attributes) or 2  # the least that cost anything
        if collective == "all-gather":
            size *= group
        dtype, what = next((s.dtype for s in one.shapes), ""), _unread(computations, own, one)
        return Operation("collectives", times, 0, size, dtype, collective, group, name, unread=what)
    inner = [computations[each] for each in _called(one, computations)]
    fused = one.opcode == "fusion" and bool(inner)
    nested = _fused(computations, one) if fused else [(own, one)]
    flops = sum(_flops(where, each) for where, each in nested)
    moved = _fusion_bytes(own, one, inner[0]) if fused else _plain_bytes(own, one)
    factors = [_factor_dtype(where, each) for where, each in nested if _flops(where, each)]
    dtype = factors[0] if factors else next((s.dtype for s in one.shapes), "")
    name = name or next(filter(None, (_origin(each) for _, each in reversed(nested))), "")
    kind = _kind(nested, flops, name)
    expected = _CYCLES.search(one.attributes)
    cycles = int(expected[1]) if expected else 0
    checked = (_unread(computations, *each) for each in [(own, one), *nested])
    what = next(filter(None, checked), "")
    return Operation(kind, times, flops, moved, dtype, name=name, cycles=cycles, unread=what)


def _unread(computations: Mapping[str, Computation], own: Computation, one: Instruction) -> str:
    """What of an instruction is counted and has an unknown form; "" if nothing."""
    unknown = [shape.dtype for shape in one.shapes if element_bytes(shape.dtype) is None]
    if unknown:
        return f"element type {unknown[0]}"
    if not one.opcode or (one.opcode == "fusion" and not _called(one, computations)):
        return f"{one.opcode}{one.attributes}"[:_SHOWN]
    missing = [name for name in one.operands if name not in own]
    if missing and one.opcode not in _FREE:
        return f"operand {missing[0]} of {one.opcode}"[:_SHOWN]
    joining = _JOINING.search(one.attributes)
    if one.opcode.removesuffix("-start") in COLLECTIVES:
        groups = joining[0] if joining else "no groups"
        return "" if _group(one.attributes) else f"{one.opcode} of {groups}"[:_SHOWN]
    if joining:
        return f"{one.opcode} of {joining[0]}"[:_SHOWN]
    target = _TARGET.search(one.attributes)
    if one.opcode == "custom-call" and target and _NO_PRODUCT.match(target[1]):
        return ""
    product = re.search("custom-call|convolution|dot", one.opcode)
    if product and not (_flops(own, one) and _windows_agree(one)):
        return f"{one.opcode} {target[1] if target else one.attributes}"[:_SHOWN]
    return ""


def _windows_agree(one: Instruction) -> bool:
    """Whether the window of a convolution, if it is one, has as many sides as its arrays."""
    labels, window = _LABELS.search(one.attributes), _WINDOW.search(one.attributes)
    sides = len(window[1].split("x")) if window else 0
    return not labels or sides == len(labels[2]) - 2


def _origin(one: Instruction) -> str:
    found = _NAME.search(one.attributes)
    return found[1] if found else ""


def _kind(nested: list[tuple[Computation, Instruction]], flops: float, name: str) -> str:
    if flops:
        windows = (_taps(each) > 1 for where, each in nested if _flops(where, each))
        return "convolutions" if any(windows) else "matrix products"
    if "/Norm_" in name or "norm" in name.rsplit("/", 1)[0].lower():
        return "norms"
    opcodes = {each.opcode for _, each in nested}
    return "copies" if opcodes <= _MOVES | _FREE else "other"


def _fused(
    computations: Mapping[str, Computation], one: Instruction
) -> list[tuple[Computation, Instruction]]:
    """The instructions of a fusion."""
    inner = _called(one, computations)
    return list(_nested(computations, computations[inner[0]])) if inner else []


def _nested(
    computations: Mapping[str, Computation], own: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """The instructions of a fused computation and of those fused into it."""
    for one in own.values():
        if one.opcode == "fusion":
            yield from _fused(computations, one) or [(own, one)]
        else:
            yield own, one


def _operand_shapes(own: Computation, one: Instruction) -> list[Shape]:
    return [shape for name in one.operands if name in own for shape in own[name].shapes]


def _whole(shape: Shape) -> int:
    return shape._replace(in_memory=True).bytes


def _plain_bytes(own: Computation, one: Instruction) -> float:
    results = sum(shape.bytes for shape in one.shapes)
    if one.opcode in _SLICES:
        return 2 * results
    if one.opcode == "dynamic-update-slice":
        return 2 * sum(shape.bytes for shape in _operand_shapes(own, one)[1:2])
    if one.opcode.endswith("-start"):  # the result names the operand again, for the -done
        return sum(shape.bytes for shape in one.shapes)
    return results + sum(shape.bytes for shape in _operand_shapes(own, one))


def _fusion_bytes(own: Computation, one: Instruction, inner: Computation) -> float:
    """Bytes of a fusion: a sliced operand counts by its slices, an updated one by its update."""
    root = next((each for each in inner.values() if each.root), None)
    updated = ""
    total = float(sum(shape.bytes for shape in one.shapes))
    if root is not None and root.opcode == "dynamic-update-slice":
        updated = root.operands[0]
        total = sum(_whole(shape) for shape in _operand_shapes(inner, root)[1:2])
    parameters = [each for each in inner.values() if each.opcode == "parameter"]
    numbered = {int(each.operands[0]): each for each in parameters if each.operands}
    for number, name in enumerate(one.operands):
        shapes = own[name].shapes if name in own else ()
        parameter = numbered.get(number)
        if parameter is None:
            total += sum(shape.bytes for shape in shapes)
            continue
        users = [each for each in inner.values() if parameter.name in each.operands]
        if parameter.name == updated:
            continue
        # An operand that is sliced itself, and not an index of the slice.
        if users and all(u.opcode in _SLICES and u.operands[0] == parameter.name for u in users):
            in_memory = all(shape.in_memory for shape in shapes)
            total += sum(_whole(s) for each in users for s in each.shapes) * in_memory
        else:
            total += sum(shape.bytes for shape in shapes)
    return total


def _flops(own: Computation, one: Instruction) -> float:
    """Of a convolution or a matrix product; 0 for any other instruction."""
    shapes = [own[name].shapes[0] for name in one.operands if name in own and own[name].shapes]
    if len(shapes) < 2 or not one.shapes:
        return 0
    if one.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        sides = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * one.shapes[0].elements * math.prod(shapes[0].sides[axis] for axis in sides)
    if one.opcode == "convolution":
        labels = _LABELS.search(one.attributes)
        if not labels or "i" not in labels[2]:
            return 0
        channels = shapes[1].sides[labels[2].index("i")]
        dilation = _DILATION.search(one.attributes)
        spread = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        return 2 * one.shapes[0].elements * _taps(one) * channels / spread
    target = _TARGET.search(one.attributes)
    if one.opcode == "custom-call" and target:
        if target[1] in _NATIVE:
            return 2 * shapes[0].elements / shapes[0].sides[-1] * one.shapes[0].elements
        factors = shapes[0].elements * shapes[1].elements * one.shapes[0].elements
        if feature := _FEATURE.search(one.attributes):  # oneDNN
            return (
                2 * one.shapes[0].elements * shapes[1].elements / shapes[1].sides[int(feature[1])]
            )
        if "conv" in target[1]:
            # cuDNN: the same for the output, the input's and the weights' gradient, in which the
            # three arrays change their roles.
            return 2 * math.sqrt(factors * _taps(one))
        if re.search(r"gemm|matmul|dot", target[1]):
            return 2 * math.sqrt(factors)
    return 0


def _taps(one: Instruction) -> int:
    window = _WINDOW.search(one.attributes)
    if window:
        return math.prod(map(int, window[1].split("x")))
    target = _TARGET.search(one.attributes)
    return 2 if target and ("conv" in target[1] or target[1] in _NATIVE) else 1


def _factor_dtype(own: Computation, one: Instruction) -> str:
    return own[one.operands[0]].shapes[0].dtype


def _trips(computations: Mapping[str, Computation], one: Instruction) -> int:
    """How often a loop runs: as XLA found out, or the largest constant of its condition; or 0."""
    if found := _TRIPS.search(one.attributes):
        return int(found[1])
    condition = _CONDITION.search(one.attributes)
    constants = [
        int(each.operands[0])
        for each in (computations.get(condition[1], {}).values() if condition else ())
        if each.opcode == "constant" and each.operands and each.operands[0].isdecimal()
    ]
    return max(constants, default=0)


def _group(attributes: str) -> int:
    """Devices in the first group of a collective, 0 if its form is unknown.

    It names some axes of a mesh, or lists the devices, or the size of each group.
    """
    if found := _MESH.search(attributes):
        sizes = dict(_SIDE.findall(found[1]))
        axes = [(part or sizes.get(axis, 0)) for axis, part in _AXIS.findall(found[2])]
        return math.prod(map(int, axes))
    if found := _LISTED.search(attributes):
        return int(found[1] or len(found[2].split(",")))
    return 2 if "source_target_pairs={{" in attributes else 0
