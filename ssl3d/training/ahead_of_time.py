"""Training step and validation of a config, compiled from shapes alone, for devices not at hand."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ssl3d import accelerators, tasks, xla
from ssl3d.data import loader, pipeline, store
from ssl3d.errors import UserError
from ssl3d.phantoms import dataset as phantom
from ssl3d.training import hlo, problem, sharding, transfer
from ssl3d.training.cases import labels_of
from ssl3d.training.step import (
    make_evaluation,
    make_initial,
    make_optimizers,
    make_step,
    variables_of,
)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Data(NamedTuple):
    """What a plan must know about the data.

    Attributes:
      channels: of an image.
      labels: classes of the cases, and how often each occurs.
      scored: cases that a validation scores.
    """

    channels: int
    labels: tasks.Labels
    scored: int


class Compiled(NamedTuple):
    """The compiled step of a config.

    Attributes:
      batch: examples of a step, on all devices.
      share: examples of a step on each row of devices that share them.
      unit: examples by which a batch can grow, see `sharding.unit_batch`.
      memory: bytes per device: state, activations, and two batches, one of them on its way.
      batch_bytes: of a whole batch, from the hosts to the devices.
      model_flops: for the whole batch on all devices, before any optimisation.
      operations: of the program of one device; none where the compiler refuses it.
      unread: a line for each unknown form in the text of the programs, see `hlo.unread`.
      seconds: of the compilation.
      needs_whole_batch: whether micro-batches would change the problem.
    """

    batch: int
    share: int
    unit: int
    memory: float
    batch_bytes: int
    model_flops: float
    operations: list[hlo.Operation]
    unread: list[str]
    seconds: float
    needs_whole_batch: bool


def describe(config: ml_collections.ConfigDict) -> tuple[Data, str]:
    """The data of a config, and a remark on where this is from.

    Prepared data adapt the config, in place, as at the start of a run. Of others, the phantom or
    `config.plan` tells channels and classes; nothing is generated.

    Raises:
      UserError: config and data do not fit together.
    """
    folder = config.data.path
    if folder and (Path(folder) / store.MANIFEST).exists():
        found, _ = problem.open_problem(config)
        labels = labels_of(found.dataset, found.train_cases)
        scored = len(problem.scored_cases(found))
        return Data(len(found.dataset.modalities), labels, scored), "; ".join(found.notes)
    channels, classes = config.plan.channels, config.plan.classes
    scored = config.validation.cases
    if config.data.phantom.kind:
        kind = phantom.KINDS[config.data.phantom.kind]
        channels, classes = len(kind.modalities), len(kind.classes)
        scored = min(scored, config.data.phantom.val)
    transfer.adopt_architecture(config, channels)
    where = f" in {folder}" if folder else ""
    remark = f"no data prepared{where}: {channels} channel(s), {classes} classes assumed"
    labels = tasks.Labels(tuple(map(str, range(classes))), (1,) * classes)
    return Data(channels, labels, scored), remark


def compile_step(
    config: ml_collections.ConfigDict,
    data: Data,
    platform: str,
    devices: Sequence[jax.Device],
) -> Compiled:
    """Compiles the step of a config for devices of a platform ("cpu", "gpu" or "tpu").

    Raises:
      UserError: the config does not suit the devices, or what compiles for them is incomplete.
    """
    lowered, task, mesh, batch = lower_step(config, data, platform, devices)
    begun = time.monotonic()
    operations, memory = run_compiler(lowered, platform)
    traced = hlo.traced(lowered)
    leaves = jax.tree.leaves(batch)
    size = batch["subject"].shape[0]
    return Compiled(
        batch=size,
        share=size // mesh.shape["data"],
        unit=sharding.unit_batch(mesh) * config.optimizer.accumulate,
        memory=memory + sum(map(_own_bytes, leaves)),
        batch_bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves),
        model_flops=hlo.flops(traced),
        operations=operations,
        unread=hlo.unread([*traced, *operations]),
        seconds=time.monotonic() - begun,
        needs_whole_batch=task.needs_whole_batch,
    )


def lower_step(
    config: ml_collections.ConfigDict,
    data: Data,
    platform: str,
    devices: Sequence[jax.Device],
) -> tuple[Any, tasks.Task, Mesh, Any]:
    """The lowered step, its task and mesh, and the shapes of a batch; see `compile_step`."""
    config = config.copy_and_resolve_references()
    with xla.compiling_for(platform):
        task, mesh, batch, state = _shapes(config, data, devices, train=True)
        frozen = transfer.frozen_steps(config) >= config.steps
        step: Any = make_step(config, task, make_optimizers(config), mesh, frozen)
        return step.lower(state, batch), task, mesh, batch


def compile_validation(
    config: ml_collections.ConfigDict,
    data: Data,
    platform: str,
    devices: Sequence[jax.Device],
) -> tuple[int, list[hlo.Operation]]:
    """How many batches a validation has, and the operations of one on a device.

    Raises:
      UserError: see `compile_step`.
    """
    config = config.copy_and_resolve_references()
    with xla.compiling_for(platform):
        task, mesh, batch, state = _shapes(config, data, devices, train=False)
        row = batch["subject"]
        for key, dtype in (("repeat", np.uint32), ("valid", bool)):
            batch[key] = jax.ShapeDtypeStruct(row.shape, dtype, sharding=row.sharding)
        evaluation: Any = make_evaluation(config, task, mesh)
        lowered = evaluation.lower(variables_of(state), batch)
    samples = data.scored * config.validation.repeats
    return math.ceil(samples / config.batch_size), run_compiler(lowered, platform)[0]


def _shapes(
    config: ml_collections.ConfigDict, data: Data, devices: Sequence[jax.Device], train: bool
) -> tuple[tasks.Task, Mesh, dict[str, Any], Any]:
    """The task and the mesh of a config, which is completed in place; shapes of batch and state."""
    mesh = problem.prepare(config, devices)
    task = tasks.build(config, data.labels)
    record = _record(config, task, data, train)
    problem.check(config, task, record, mesh)
    batch = _abstract_batch(config.batch_size, record, mesh, task.spatial)
    initial = make_initial(config, task, make_optimizers(config), record)
    whole = sharding.replicated(mesh)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        jax.eval_shape(initial, jax.random.key(0)),
    )
    return task, mesh, batch, state


def _record(
    config: ml_collections.ConfigDict, task: tasks.Task, data: Data, train: bool
) -> dict[str, np.ndarray]:
    """The record of an image of zeros, as large as the crop."""
    shape = tuple(config.data.crop)
    case = store.Case(
        id="none",
        subject="none",
        split="train",
        shape=shape,
        channels=data.channels,
        spacing=(1.0,) * len(shape),
        affine=tuple(map(tuple, np.eye(len(shape) + 1).tolist())),
        labelled=True,
        grade=0,
    )
    image = np.zeros((*shape, data.channels), np.float16)
    example = pipeline.Example(image, case, np.zeros(shape, np.uint8))
    return loader.arrays(task.record(np.random.default_rng(0), example, train))


def _abstract_batch(
    size: int, record: Mapping[str, np.ndarray], mesh: Mesh, spatial: Sequence[str]
) -> Any:
    number = np.zeros((), np.int32)
    example = {"record": record, "subject": number, "case": number, "case_key": number}
    return jax.tree.map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            (size, *leaf.shape),
            leaf.dtype,
            sharding=NamedSharding(mesh, sharding.batch_spec(path, mesh, spatial)),
        ),
        example,
    )


def _own_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Of one device."""
    assert leaf.sharding is not None
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def run_compiler(lowered: Any, platform: str) -> tuple[list[hlo.Operation], float]:
    """The operations of a lowered program, and its bytes on a device.

    A compiler that refuses a program for its memory leaves no operations, and says how much it
    needs, or nothing: infinity.

    Raises:
      UserError: the compiler fails otherwise.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text:
            used = re.search(r"[Uu]sed ([\d.]+)([KMG]?) of", text)
            return [], float(used[1]) * _UNITS[used[2]] if used else math.inf
        if platform == "cpu":
            raise
        reason = (text.splitlines() or [""])[0][:200]
        raise UserError(
            f"the compiler for this target fails ({reason}); is all of "
            f"{accelerators.install_line(platform)} installed?"
        ) from None
    sizes = compiled.memory_analysis()
    memory = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.generated_code_size_in_bytes
    )
    return hlo.operations(compiled.as_text()), memory
