"""Reads the HLO text of a program: its operations with their flops, bytes and collectives.

An operation is what the device runs at once: a fusion, a convolution, a collective. Its bytes are
those of its operands and results in the device's main memory, with the padding of TPUs' tiles; what
a fusion slices out of an operand counts, not the operand. Flops are those of convolutions and
matrix products. The body of a loop counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ssl3d.training.hlo_text import Computation, Instruction, Shape, parse

# What costs nothing, and what only moves data, by opcode.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
_MOVES = {"copy", "copy-start", "transpose", "reshape", "pad", "slice", "slice-start", "convert"}
_MOVES |= {"concatenate", "broadcast", "dynamic-slice", "dynamic-update-slice", "reverse"}
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
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\] \{([^}]*)\}")
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


def operations(text: str) -> list[Operation]:
    """The operations of an HLO module in text form, compiled or not."""
    computations, entry = parse(text)
    return list(_operations(computations, entry, 1))


def flops(found: Iterable[Operation]) -> float:
    """Of all operations together, each as often as it runs."""
    return sum(one.flops * one.times for one in found)


def memory_bytes(found: Iterable[Operation]) -> float:
    """The same for the bytes in a device's memory, without those of collectives."""
    return sum(one.bytes * one.times for one in found if not one.collective)


def model_flops(lowered: Any) -> float:
    """Of a lowered program (`jax.stages.Lowered`) on all devices, before any optimisation."""
    return flops(operations(lowered.compiler_ir("hlo").as_hlo_text()))


def _operations(
    computations: Mapping[str, Computation], name: str, times: int
) -> Iterator[Operation]:
    own = computations[name]
    for one in own.values():
        called = _CALLED.findall(one.attributes)
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            continue
        if one.opcode == "while":
            for body in called:
                yield from _operations(computations, body, times * _trips(computations, one))
        elif one.opcode == "conditional":
            for branches, branch in _BRANCHES.findall(one.attributes):
                for each in branches.split(",") if branches else [branch]:
                    yield from _operations(computations, each.strip().lstrip("%"), times)
        elif one.opcode in ("call", "async-start") and called:
            yield from _operations(computations, called[0], times)
        else:
            yield _operation(computations, own, one, called, times)
            if one.opcode == "fusion":  # TPUs fuse collectives with what they overlap
                for where, each in _nested(computations, computations[called[0]]):
                    if each.opcode.removesuffix("-start") in COLLECTIVES:
                        yield _operation(computations, where, each, [], times)


def _operation(
    computations: Mapping[str, Computation],
    own: Computation,
    one: Instruction,
    called: list[str],
    times: int,
) -> Operation:
    name = _origin(one)
    collective = one.opcode.removesuffix("-start")
    if collective in COLLECTIVES:
        size = sum(_whole(shape) for shape in _operand_shapes(own, one))
        group = _group(one.attributes)
        if collective == "all-gather":
            size *= group
        return Operation(
            "collectives", times, 0, size, one.shapes[0].dtype, collective, group, name
        )
    inner = [computations[each] for each in called] if one.opcode == "fusion" else []
    nested = [(own, one)] if not inner else list(_nested(computations, inner[0]))
    flops = sum(_flops(where, each) for where, each in nested)
    moved = _fusion_bytes(own, one, inner[0]) if inner else _plain_bytes(own, one)
    factors = [_factor_dtype(where, each) for where, each in nested if _flops(where, each)]
    dtype = factors[0] if factors else next((s.dtype for s in one.shapes), "")
    name = name or next(filter(None, (_origin(each) for _, each in reversed(nested))), "")
    kind = _kind(nested, flops, name)
    expected = _CYCLES.search(one.attributes)
    cycles = int(expected[1]) if expected else 0
    return Operation(kind, times, flops, moved, dtype, name=name, cycles=cycles)


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


def _nested(
    computations: Mapping[str, Computation], own: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """The instructions of a fused computation and of those fused into it."""
    for one in own.values():
        if one.opcode == "fusion":
            for called in _CALLED.findall(one.attributes):
                yield from _nested(computations, computations[called])
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
        return 2 * sum(shape.bytes for shape in own[one.operands[1]].shapes)
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
        total = sum(_whole(shape) for shape in inner[root.operands[1]].shapes)
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
    if one.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        sides = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * one.shapes[0].elements * math.prod(shapes[0].sides[axis] for axis in sides)
    if one.opcode == "convolution":
        labels = _LABELS.search(one.attributes)
        if not labels:
            return 0
        channels = shapes[1].sides[labels[2].index("i")]
        dilation = _DILATION.search(one.attributes)
        spread = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        return 2 * one.shapes[0].elements * _taps(one) * channels / spread
    target = _TARGET.search(one.attributes)
    if one.opcode == "custom-call" and target and len(shapes) > 1:
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
    """How often a loop runs: as XLA found out, or the largest constant of its condition."""
    if found := _TRIPS.search(one.attributes):
        return int(found[1])
    condition = _CONDITION.search(one.attributes)
    constants = [
        int(each.operands[0])
        for each in (computations[condition[1]].values() if condition else ())
        if each.opcode == "constant" and each.operands and each.operands[0].isdecimal()
    ]
    return max(constants, default=1)


def _group(attributes: str) -> int:
    """Devices in the first group of a collective, which names some axes of a mesh or lists them."""
    if found := _MESH.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # of an axis all, or a part
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return 2 if "source_target_pairs" in attributes else 1
