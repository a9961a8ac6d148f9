"""Devices and processes: one mesh `(data, space)` for a laptop, eight GPUs or a TPU slice.

`data` splits the batch; `space` splits the first spatial axis of large volumes or, in tasks on
patches, the patches of an example. The axes are Auto: XLA inserts the communication, so a loss over
the global batch is written as for one device.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl3d import bounds
from ssl3d.errors import RunError, UserError
from ssl3d.models import encoders, weight_gradient

# Where the other processes meet, how many they are, and which of them this is.
COORDINATES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Seconds to wait for the other processes at the start.
WAIT = 300


def start() -> None:
    """Joins the other processes of a run over several hosts, before any device is used.

    Hosts are discovered under SLURM, Open MPI and TPU pods; elsewhere set JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that SLURM did not start as one of
    several tasks runs alone.

    Raises:
      UserError: a setting is missing or garbage, or the environment does not tell the other hosts.
      RunError: this process cannot join the others.
    """
    environment = os.environ
    weight_gradient.switched_on()  # garbage is refused before anything is waited for
    if any(name in environment for name in COORDINATES):
        address, count, index = _coordinates(environment)
        if count > 1:
            _join(f"the {count} processes at {address}", address, count, index)
    elif _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        what = f"the {environment['OMPI_COMM_WORLD_SIZE']} processes of Open MPI"
        _join(what, gpus=local_gpus(environment))
    elif _number(environment, "SLURM_NTASKS") > 1:
        # Set in the steps of srun alone, not in a batch script or a shell beside it. The shell of
        # an interactive allocation is a step too, of one task.
        step = environment.get("SLURM_STEP_NODELIST")
        tasks = _number(environment, "SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
        if step and tasks > 1:
            for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"):
                _number(environment, name, "")
            _join(
                f"the {tasks} tasks of SLURM on {step}", None, tasks, None, local_gpus(environment)
            )
        else:
            print(
                f"one process on the devices of this host: the SLURM job has "
                f"{environment['SLURM_NTASKS']} tasks, start the command with srun to use them",
                flush=True,
            )
    elif len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        _join(f"the hosts {environment['TPU_WORKER_HOSTNAMES']}")


def _coordinates(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """(address, processes, index) as the user set them. Raises `UserError`."""
    missing = [name for name in COORDINATES if not environment.get(name)]
    if missing:
        given = next(name for name in COORDINATES if name in environment)
        raise UserError(f"{given} is set: set {' and '.join(missing)} too")
    address, *names = COORDINATES
    host, _, port = environment[address].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"{address}={environment[address]!r}: write HOST:PORT")
    count, index = (_number(environment, name) for name in names)
    if not 0 <= index < count:
        raise UserError(f"{names[1]}={index}: must be from 0 to {names[0]} - 1, {count - 1}")
    return environment[address], count, index


def local_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """The visible GPUs that this process of SLURM or Open MPI takes; None for one by its number.

    JAX gives process i of a host GPU i. A process that is alone on its host takes all of them, and
    one that sees a single GPU, as with --gpus-per-task, takes that one.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    on_node = environment.get("SLURM_GPUS_ON_NODE", "0")
    count = len(visible.split(",")) if visible else int(on_node) if on_node.isdecimal() else 0
    if "SLURM_STEP_NUM_NODES" in environment:
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", ""))
        alone = tasks == environment["SLURM_STEP_NUM_NODES"]
    else:
        alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return list(range(count)) if count == 1 or (alone and count) else None


def _number(environment: Mapping[str, str], name: str, default: str = "1") -> int:
    """A whole number from the environment. Raises `UserError`."""
    text = environment.get(name, default)
    if not text.isdecimal():
        raise UserError(f"{name}={text!r}: must be a whole number; correct or unset it")
    return int(text)


def _join(
    what: str,
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    gpus: list[int] | None = None,
) -> None:
    """Waits for the other processes; ends this one if they do not arrive. Raises `UserError`."""
    print(f"waiting for {what}, for {WAIT} s at most", flush=True)
    # JAX itself would abort with a core dump, a little later.
    late = threading.Timer(WAIT, _end, [f"{what} did not all arrive within {WAIT} s"])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(address, count, index, gpus, initialization_timeout=2 * WAIT)
    except ValueError as error:
        raise UserError(f"cannot find {what} ({error}); set {', '.join(COORDINATES)}") from None
    except RuntimeError as error:  # also JAX's own errors
        raise RunError(f"cannot join {what}: {(str(error).splitlines() or [''])[0]}") from None
    finally:
        late.cancel()
    with together():
        _agree()


def _agree() -> None:
    """Lets all processes compute alike: without the native weight gradient where one lacks it."""
    if jax.default_backend() != "cpu":
        return
    having = multihost_utils.process_allgather(np.asarray(weight_gradient.available()))
    lacking = np.flatnonzero(~having)
    if 0 < len(lacking) < len(having):
        weight_gradient.leave_out()
        if jax.process_index() == 0:
            print(
                f"note: no native weight gradient: {len(lacking)} of {len(having)} processes have "
                f"none, process {lacking[0]} among them",
                flush=True,
            )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process with a line where another one of the run has died."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # Not by an exception: at exit JAX would wait for the others, and abort.
        reason = (str(error).splitlines() or [""])[0][:200]
        _end(f"another process of the run has failed or was killed ({reason}); run again to go on")


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def make_mesh(space: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the devices (all of the run), `space` of which share an example.

    Raises:
      UserError: `space` does not divide their number.
    """
    count = len(devices) if devices else jax.device_count()
    if space < 1 or count % space:
        raise UserError(f"config.mesh.space={space} does not divide the {count} devices")
    shape, axes = (count // space, space), ("data", "space")
    return jax.make_mesh(shape, axes, (AxisType.Auto,) * 2, devices=devices)


def unit_batch(mesh: Mesh) -> int:
    """The smallest batch that divides evenly over the mesh and the processes."""
    processes = {device.process_index for device in mesh.devices.flat}
    return int(np.lcm(mesh.shape["data"], len(processes)))


def check_batch(batch_size: int, key: str, mesh: Mesh) -> None:
    """Raises `UserError` unless a batch divides evenly over the mesh and the processes."""
    unit = unit_batch(mesh)
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if size > 0)
        automatic = "; auto rounds up to the next multiple" * (key == "batch_size")
        raise UserError(
            f"config.{key}={batch_size}: must be a multiple of {unit} on these devices, "
            f"e.g. {near}{automatic}"
        )


def fit_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Rounds an automatic `config.batch_size` up, in place, to the next that divides evenly."""
    if bounds.is_automatic(config, "batch_size"):
        unit = unit_batch(mesh) * config.optimizer.accumulate
        if config.batch_size % unit:
            config.batch_size = -(-config.batch_size // unit) * unit


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_spec(path: tuple[Any, ...], mesh: Mesh, spatial: Sequence[str]) -> PartitionSpec:
    """How the leaf of a batch at `path` is split: by example, and under `spatial` keys in space."""
    names = {getattr(key, "key", None) for key in path}
    if names.intersection(spatial) and mesh.shape["space"] > 1:
        return PartitionSpec("data", "space")
    return PartitionSpec("data")


@contextlib.contextmanager
def shared_patches(mesh: Mesh | None, spatial: Sequence[str]) -> Iterator[None]:
    """Splits the encoder's inputs over both axes of the mesh, where no volume is split in space.

    The inputs of all patches of an example are consecutive in the encoder's batch: devices that
    share an example encode some of its patches each.
    """
    if mesh is None or mesh.shape["space"] == 1 or spatial:
        yield
        return
    placement = NamedSharding(mesh, PartitionSpec(("data", "space")))

    with encoders.on_inputs(lambda x: jax.lax.with_sharding_constraint(x, placement)):
        yield


def to_devices(batch: Any, mesh: Mesh, spatial: Sequence[str] = ()) -> Any:
    """This process's share of a global batch (leaves [B / processes, ...]) -> global arrays.

    Args:
      spatial: keys of the leaves whose first axis after the batch's is space (`Task.spatial`).
    """
    return jax.tree.map_with_path(
        lambda path, leaf: jax.make_array_from_process_local_data(
            NamedSharding(mesh, batch_spec(path, mesh, spatial)), leaf
        ),
        batch,
    )
