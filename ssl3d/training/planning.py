"""What a config needs on devices that need not be at hand: memory, time, and data per second.

A roofline is laid over the operations of the compiled step: each takes as long as its flops at the
chip's peak, or its bytes at the bandwidth of the memory or the links, whichever is more. Kernels
reach neither, and small ones fall far behind: the time is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections

from ssl3d.errors import UserError
from ssl3d.models import encoders
from ssl3d.training import ahead_of_time, hlo, targets
from ssl3d.training.ahead_of_time import Compiled

# How often the largest batch is predicted from two compilations and compiled.
_TRIES = 3
# Micro-batches and devices per volume that are tried where a config does not fit.
_SPLITS = (2, 4, 8)

Attempt = Callable[[dict[str, Any]], Compiled]  # overrides of the config -> its compiled step


class Plan(NamedTuple):
    """A config on a target. Seconds, flops and bytes are those of a training step.

    Attributes:
      config, target: their names.
      devices, batch: in all; `share` is the batch of a device, or of those that share examples.
      memory, memory_limit: bytes per device, needed and given.
      fits: whether the first is within the second.
      largest_batch: that fits, 0 if none is known; `largest_batch_is` says how it was found.
      model_flops: on all devices, before any optimisation.
      flops, bytes: of the program of one device.
      collectives: number and combined bytes by kind, of one device.
      seconds: roofline, a lower bound; `expected_seconds` is the estimate of a TPU's compiler,
        without collectives, and 0 elsewhere.
      phases: seconds of the operations bound by compute, memory and collectives; `bound` is the
        phase that takes most.
      classes: by class of operation, its number, seconds, flops and bytes.
      batch_bytes: from the hosts to the devices.
      host_volumes, host_bytes: per second, what keeps the devices busy at the roofline.
      compile_seconds: on this machine.
      validation_batches, validation_seconds: of a validation, and the roofline of each of them; 0
        if not sought.
      validation_share: of the time of a run, at the rooflines of both.
      remedies: overrides for a config that does not fit, and what each needs.
      notes: what a reader should know about the figures.
    """

    config: str
    target: str
    devices: int
    batch: int
    share: int
    memory: float
    memory_limit: float
    fits: bool
    largest_batch: int
    largest_batch_is: str
    model_flops: float
    flops: float
    bytes: float
    collectives: dict[str, tuple[int, float]]
    seconds: float
    expected_seconds: float
    bound: str
    phases: dict[str, float]
    classes: dict[str, dict[str, float]]
    batch_bytes: int
    host_volumes: float
    host_bytes: float
    compile_seconds: float
    validation_batches: int
    validation_seconds: float
    validation_share: float
    remedies: tuple[str, ...]
    notes: tuple[str, ...]


def plan(
    config: ml_collections.ConfigDict,
    target: targets.Target,
    quick: bool = False,
) -> Plan:
    """Compiles a config for a target, once or, to find the largest batch, a few times.

    Args:
      quick: compile once, without the largest batch, remedies and validation.

    Raises:
      UserError: config and target do not fit together, or the target's compiler is missing.
    """
    config = config.copy_and_resolve_references()
    chip, devices = target.chip, targets.devices(target)
    data, remark = ahead_of_time.describe(config)

    def attempt(overrides: dict[str, Any]) -> Compiled:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(overrides)
        return ahead_of_time.compile_step(changed, data, chip.platform, devices)

    first = attempt({})
    limit = chip.memory * chip.usable
    fits = first.memory <= limit
    largest, found, remedies = 0, "not sought", tuple[str, ...]()
    if not quick:
        cheap = chip.platform != "tpu"
        largest, found = _largest_batch(first, limit, attempt, cheap)
        if not fits:
            remedies = tuple(_remedies(config, first, largest, limit, attempt, cheap))
    count, each, share, scoring = 0, 0.0, 0.0, list[hlo.Operation]()
    hosts = len({device.process_index for device in devices})
    measured = _measure(first, chip, hosts)
    if not quick and fits:
        count, scoring = ahead_of_time.compile_validation(config, data, chip.platform, devices)
        each = sum(roofline(one, chip, hosts)[1] * one.times for one in scoring)
        share = count * each / (count * each + config.validate_every * measured["seconds"])
    unread = dict.fromkeys([*first.unread, *hlo.unread(scoring)])
    notes = [*([remark] if remark else []), *unread]
    if chip.clock and first.operations and not measured["expected_seconds"]:
        notes.append("the compiler's own estimate of the time was not found in XLA's text")
    if chip.platform == "gpu":
        notes.append("cuDNN's workspaces are not part of the memory")
    if chip.platform == "cpu":
        notes.append("the chip's figures are assumed")
    return Plan(
        **measured,
        config=config.name,
        target=target.name,
        devices=len(devices),
        memory_limit=limit,
        fits=fits,
        largest_batch=largest,
        largest_batch_is=found,
        validation_batches=count,
        validation_seconds=each,
        validation_share=share,
        remedies=remedies,
        notes=tuple(notes),
    )


def _measure(first: Compiled, chip: targets.Chip, hosts: int) -> dict[str, Any]:
    """What a plan says of one compiled step."""
    phases = dict.fromkeys(("compute", "memory", "collectives"), 0.0)
    classes = {
        kind: dict.fromkeys(("number", "seconds", "flops", "bytes"), 0.0) for kind in hlo.CLASSES
    }
    collectives = dict[str, tuple[int, float]]()
    for one in first.operations:
        phase, seconds = roofline(one, chip, hosts)
        phases[phase] += seconds * one.times
        row = classes[one.kind]
        row["number"] += one.times
        row["seconds"] += seconds * one.times
        row["flops"] += one.flops * one.times
        row["bytes"] += one.bytes * one.times
        if one.collective:
            number, size = collectives.get(one.collective, (0, 0.0))
            collectives[one.collective] = number + one.times, size + one.bytes * one.times
    total = sum(phases.values())
    cycles = sum(one.cycles * one.times for one in first.operations)
    rate = first.batch / total if total else 0.0
    return dict(
        batch=first.batch,
        share=first.share,
        memory=first.memory,
        model_flops=first.model_flops,
        flops=hlo.flops(first.operations),
        bytes=hlo.memory_bytes(first.operations),
        collectives=collectives,
        seconds=total,
        expected_seconds=cycles / chip.clock if chip.clock else 0.0,
        bound=max(phases, key=lambda phase: phases[phase]) if total else "",
        phases=phases,
        classes={kind: row for kind, row in classes.items() if row["number"]},
        batch_bytes=first.batch_bytes,
        host_volumes=rate,
        host_bytes=rate * first.batch_bytes / first.batch,
        compile_seconds=first.seconds,
    )


def roofline(one: hlo.Operation, chip: targets.Chip, hosts: int = 1) -> tuple[str, float]:
    """What bounds an operation (compute, memory or collectives), and its seconds each time."""
    if one.collective:
        link = chip.network if hosts > 1 else chip.link
        return "collectives", one.bytes * _travels(one) / link
    peak = chip.bfloat16 if one.dtype in ("bf16", "f16") else chip.float32
    compute, memory = one.flops / peak, one.bytes / chip.bandwidth
    return ("compute", compute) if compute > memory else ("memory", memory)


def _travels(one: hlo.Operation) -> float:
    """How often each combined byte leaves a device, in a ring."""
    share = (one.group - 1) / one.group
    return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(one.collective, share)


def _largest_batch(first: Compiled, limit: float, attempt: Attempt, cheap: bool) -> tuple[int, str]:
    """The largest batch that fits, and how it was found; (0, ...) if not even the least does.

    Memory grows linearly with the batch. Two batches predict the largest; where it is `cheap`,
    that one is compiled too, and the prediction corrected.
    """
    known, unit = {first.batch: first.memory}, first.unit

    def compile_batch(size: int) -> None:
        known[size] = attempt({"batch_size": size}).memory

    size = first.batch
    while size > unit and known[size] > limit:
        size = max(size // 2 // unit * unit, unit)
        compile_batch(size)
    if known[size] > limit:
        return 0, f"even a batch of {size} needs more than a device has"
    if len(known) == 1:
        compile_batch(2 * size)
    for trial in range(_TRIES):
        two = sorted((size, memory) for size, memory in known.items() if math.isfinite(memory))[-2:]
        fitting = max(size for size, memory in known.items() if memory <= limit)
        if len(two) < 2:
            return fitting, "compiled; twice the batch does not fit"
        (small, less), (large, more) = two
        each = max((more - less) / (large - small), 1.0)
        predicted = max(large + math.floor((limit - more) / each / unit) * unit, unit)
        label = f"extrapolated from {small} and {large}"
        if predicted <= fitting:
            return fitting, "compiled"
        if not cheap:
            return predicted, label
        if trial == _TRIES - 1 or predicted in known:
            break
        compile_batch(predicted)
    return max(size for size, memory in known.items() if memory <= limit), "compiled"


def _remedies(
    config: ml_collections.ConfigDict,
    first: Compiled,
    largest: int,
    limit: float,
    attempt: Attempt,
    cheap: bool,
) -> Iterator[str]:
    """What would make the config fit, a line each; compiled where that is cheap."""
    if largest:
        yield f"--config.batch_size={largest}"
    candidates: list[dict[str, Any]] = []
    if "remat" in encoders.kind_of(config.encoder).settings and not config.encoder.remat:
        candidates.append({"encoder.remat": True})
    if config.encoder.dtype == "float32":
        candidates.append({"encoder.dtype": "bfloat16"})
    now = config.optimizer.accumulate
    if not first.needs_whole_batch:
        micro = [now * n for n in _SPLITS if first.batch % (first.unit * n) == 0]
        candidates += [{"optimizer.accumulate": n} for n in micro]
    rows = first.batch // first.share
    candidates += [{"mesh.space": config.mesh.space * n} for n in _SPLITS if rows % n == 0]
    done = set[str]()
    for overrides in candidates:
        ((key, value),) = overrides.items()
        option = f"--config.{key}={value}"
        if key in done:
            continue
        if not cheap:
            done.add(key)
            yield f"{option} (not compiled)"
            continue
        try:
            memory = attempt({"batch_size": first.batch} | overrides).memory
        except UserError:
            continue
        if memory <= limit:
            done.add(key)
            yield f"{option} ({memory / 1e9:.1f} GB)"


def text(found: Plan) -> str:
    """A plan to read."""
    f, ms = found, 1e3
    verdict = "fits" if f.fits else "does not fit"
    needed, given = f.memory / 1e9, f.memory_limit / 1e9
    lines = [
        f"{f.config} on {f.target}: {f.devices} devices, batch {f.batch} ({f.share} each)",
        f"memory         {needed:.2f} of {given:.1f} GB per device: {verdict}",
        f"largest batch  {f.largest_batch or 'none'} ({f.largest_batch_is})",
        *(f"would fit      {remedy}" for remedy in f.remedies),
    ]
    if f.seconds:
        shares = ", ".join(f"{name} {s / f.seconds:.0%}" for name, s in f.phases.items())
        sent = [f"{n} {kind}, {size / 1e6:.2f} MB" for kind, (n, size) in f.collectives.items()]
        model, own, moved = f.model_flops / 1e12, f.flops / 1e12, f.bytes / 1e9
        loaders = f"{f.host_bytes / 1e6:.0f} MB/s; {f.batch_bytes / 1e6:.1f} MB a batch"
        scoring = (
            f"{f.validation_batches} batches, {f.validation_seconds * ms:.2f} ms each at the "
            f"roofline: {f.validation_share:.1%} of a run"
        )
        lines += [
            f"step           {f.seconds * ms:.2f} ms at the roofline, a lower bound: {shares}",
            *(
                [f"expected       {f.expected_seconds * ms:.1f} ms by the compiler's own estimate"]
                if f.expected_seconds
                else []
            ),
            f"work           {model:.3f} TFLOP of the model; per device {own:.3f} TFLOP, "
            f"{moved:.2f} GB",
            f"collectives    {'; '.join(sent) or 'none'}",
            f"loaders        {f.host_volumes:.0f} volumes/s, {loaders}",
            *([f"validation     {scoring}"] if f.validation_batches else []),
            "",
            "| operations | number | ms | share | GFLOP | GB |",
            "|---|---|---|---|---|---|",
            *(
                f"| {kind} | {row['number']:.0f} | {row['seconds'] * ms:.2f} | "
                f"{row['seconds'] / f.seconds:.0%} | {row['flops'] / 1e9:.1f} | "
                f"{row['bytes'] / 1e9:.3f} |"
                for kind, row in f.classes.items()
            ),
            "",
        ]
    return "\n".join([*lines, f"compiled in {f.compile_seconds:.0f} s", *f.notes])
