"""How fast a config trains on this machine, and what limits it.

Three rates beside each other: the compiled step on a batch that stays on the device, the loader
alone, and training as it runs. Where the second is lower than the first, the loader limits.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from ssl3d import cli, hardware, processes, xla
from ssl3d.errors import RunError
from ssl3d.models import encoders
from ssl3d.training import hlo, loop, problem, run_log, sharding
from ssl3d.training.step import init_state, make_optimizers, make_step

# Seconds of each measurement, and the least number of steps or batches in it.
_SECONDS, _LEAST = 8.0, 4
# Sides of the matrices whose product gives the peak of the machine, by platform.
_MATRIX = {"cpu": 2048}


class Benchmark(NamedTuple):
    """The figures of one config; seconds, bytes and counts are those of a training step.

    Attributes:
      config: its name.
      machine: see `hardware.machine`.
      batch: volumes (slices, pictures) of a step.
      patches: inputs of the encoder in a step.
      step_volumes, step_patches: per second, of the compiled step alone.
      loader_volumes: per second, of the loader alone.
      volumes: per second, of training as it runs.
      data_wait: share of its time spent waiting for data.
      step_seconds, compile_seconds: of the compiled step, and of compiling it.
      flops: of the model's convolutions and matrix products, forward and backward, on all devices.
      bytes: read and written by the compiled step, on each device.
      batch_bytes: of the batch, from the host to the device.
      peak_share: share of the machine's peak, measured by a matrix product.
      peak_flops: that peak, per second.
      memory_mb: at the peak, of the device, or of the process on a CPU.
      notes: forms of XLA's text that are unknown, so that flops and bytes are too low.
    """

    config: str
    machine: str
    batch: int
    patches: int
    step_volumes: float
    step_patches: float
    loader_volumes: float
    volumes: float
    data_wait: float
    step_seconds: float
    compile_seconds: float
    flops: float
    bytes: float
    batch_bytes: int
    peak_share: float
    peak_flops: float
    memory_mb: float
    notes: Sequence[str] = ()


def benchmark(config: ml_collections.ConfigDict, profile: Path | None = None) -> Benchmark:
    """Measures a config.

    Args:
      profile: folder for a trace of some steps, for TensorBoard or xprof.

    Raises:
      UserError: config, data or devices do not fit.
    """
    config = config.copy_and_resolve_references()
    mesh = problem.prepare(config)
    training = _train(config)
    given, _ = problem.open_problem(config)
    record = problem.example_record(given)
    optimizers = make_optimizers(config)
    state = init_state(config, given.task, optimizers, record, mesh)

    batches = problem.train_batches(given, first_batch=0)
    batch = next(batches)  # the readers are at work
    seconds, count = _repeat(lambda: next(batches))
    loader = count * config.batch_size / seconds

    placed = sharding.to_devices(batch, mesh, given.task.spatial)
    calls: list[int] = []
    with count_inputs(calls):
        jitted: Any = make_step(config, given.task, optimizers, mesh)
        lowered = jitted.lower(state, placed)
    begun = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begun
    carried = [state]

    def step() -> None:
        carried[0], metrics = compiled(carried[0], placed)
        jax.block_until_ready(metrics)

    step()
    seconds, count = _repeat(step)
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            for _ in range(_LEAST):
                step()
    step_seconds = seconds / count
    traced, operations = hlo.traced(lowered), hlo.operations(compiled.as_text())
    flops, peak = hlo.flops(traced), _matmul_peak(config.encoder.dtype)
    return Benchmark(
        config=config.name,
        machine=hardware.machine(),
        batch=config.batch_size,
        patches=sum(calls),
        step_volumes=config.batch_size / step_seconds,
        step_patches=sum(calls) / step_seconds,
        loader_volumes=loader,
        volumes=training["volumes_per_second"],
        data_wait=training["data_wait"],
        step_seconds=step_seconds,
        compile_seconds=compile_seconds,
        flops=flops,
        bytes=hlo.memory_bytes(operations),
        batch_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(batch)),
        peak_share=flops / step_seconds / (peak * jax.device_count()),
        peak_flops=peak,
        memory_mb=hardware.peak_memory(),
        notes=hlo.unread([*traced, *operations]),
    )


def suite(options: Sequence[str], show: bool) -> list[Benchmark]:
    """The figures of every config in the folder of the one in `options`, each in its own process.

    A config that cannot be measured, e.g. without data, is named on stderr and left out.

    Args:
      options: of the command, without `--suite`.
      show: print the rows as they come.

    Raises:
      RunError: none could be measured.
    """
    (given,) = (option for option in options if option.startswith("--config="))
    name, _, dataset = given.removeprefix("--config=").partition(":")
    rest = [option for option in options if option not in (given, "--json")]
    found = []
    for file in sorted(cli.config_file(name).parent.glob("*[23]d.py")):
        own = f"--config={file}" + f":{dataset}" * bool(dataset)
        command = [sys.executable, "-m", "ssl3d.benchmark", own, *rest, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = processes.last_line(ended.stderr)
            print(f"left out: {own}: {reason}", file=sys.stderr, flush=True)
            continue
        found.append(Benchmark(**json.loads(ended.stdout.splitlines()[-1])))
        if show:
            print(line(found[-1]), flush=True)
    if not found:
        raise RunError("--suite: none of the configs could be measured")
    return found


HEAD = (
    "| config | batch | step: volumes/s | patches/s | loader: volumes/s | training: volumes/s | "
    "data wait | compile s | GFLOP | peak % | memory MB |\n|" + "---|" * 11
)


def line(found: Benchmark) -> str:
    """A row of the table under `HEAD`."""
    f = found
    return (
        f"| {f.config} | {f.batch} | {f.step_volumes:.1f} | {f.step_patches:.0f} | "
        f"{f.loader_volumes:.0f} | {f.volumes:.1f} | {f.data_wait:.3f} | {f.compile_seconds:.0f} | "
        f"{f.flops / 1e9:.1f} | {100 * f.peak_share:.0f} | {f.memory_mb:.0f} |"
    )


def _train(config: ml_collections.ConfigDict) -> dict[str, float]:
    """The rates of a short run of `loop.train`, without validations."""
    trial = config.copy_and_resolve_references()
    trial.optimizer.warmup_steps = 1
    trial.log.wandb = trial.log.mlflow = ""
    if "probe_every" in trial:
        trial.probe_every = 0
    rates = dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for log_every in (_LEAST, 0):
            log_every = log_every or max(int(_SECONDS * rates["steps_per_second"]), _LEAST)
            # The first window holds the start of the loader.
            trial.steps, trial.log_every = 2 * log_every, log_every
            trial.validate_every = trial.checkpoint_every = trial.steps
            run = Path(folder) / str(log_every)
            with contextlib.redirect_stdout(io.StringIO()):
                loop.train(trial, run)
            last = [row for row in run_log.read_metrics(run) if row["split"] == "train"][-1]
            rates = {key: last[key] for key in ("volumes_per_second", "data_wait")}
            rates["steps_per_second"] = rates["volumes_per_second"] / trial.batch_size
    return rates


def _repeat(call: Callable[[], Any]) -> tuple[float, int]:
    """Calls until `_SECONDS` have passed, at least `_LEAST` times: -> seconds, calls."""
    begun, count = time.perf_counter(), 0
    while count < _LEAST or time.perf_counter() - begun < _SECONDS:
        call()
        count += 1
    return time.perf_counter() - begun, count


def count_inputs(counts: list[int]) -> contextlib.AbstractContextManager[None]:
    """Appends the number of inputs of each call of the encoder in the block."""

    def note(inputs: jax.Array) -> jax.Array:
        counts.append(len(inputs))
        return inputs

    return encoders.on_inputs(note)


def _matmul_peak(dtype: str) -> float:
    """Floating-point operations per second of one device, in products of square matrices."""
    side = _MATRIX.get(jax.default_backend(), 8192)
    matrix = jnp.ones((side, side), dtype)
    product = xla.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    return 1 / min(_seconds(product, matrix) for _ in range(5)) * 2 * side**3


def _seconds(product: Callable, matrix: jax.Array) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(product(matrix, matrix))
    return time.perf_counter() - begun
