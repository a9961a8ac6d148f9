"""Devices and processes: one mesh `(data, space)` for a laptop, eight GPUs or a TPU slice.

`data` splits the batch, `space` the first spatial axis of large volumes. The axes are Auto: XLA
inserts the communication, so a loss over the global batch is written as for one device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl3d.errors import UserError


def start() -> None:
    """Joins the other processes of a run over several hosts, before any device is used.

    Hosts are discovered under SLURM, Open MPI and TPU pods; elsewhere set JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Raises `UserError` if one
    of these is missing.
    """
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        try:
            count = int(environment["JAX_NUM_PROCESSES"])
            index = int(environment["JAX_PROCESS_ID"])
        except (KeyError, ValueError):
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID to "
                "numbers too"
            ) from None
        jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"], count, index)
    elif (
        any(
            int(environment.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
        )
        or len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    ):
        jax.distributed.initialize()


def make_mesh(space: int) -> Mesh:
    """The mesh over all devices, `space` of which share a volume. Raises `UserError`."""
    count = jax.device_count()
    if space < 1 or count % space:
        raise UserError(f"config.mesh.space={space} does not divide the {count} devices")
    return jax.make_mesh((count // space, space), ("data", "space"), (AxisType.Auto,) * 2)


def check_batch(batch_size: int, key: str, mesh: Mesh) -> None:
    """Raises `UserError` unless a batch divides evenly over the mesh and the processes."""
    share = np.lcm(mesh.shape["data"], jax.process_count())
    if batch_size < 1 or batch_size % share:
        raise UserError(f"config.{key}={batch_size}: must be a multiple of {share} on this mesh")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_spec(path: tuple[Any, ...], mesh: Mesh, spatial: Sequence[str]) -> PartitionSpec:
    """How the leaf of a batch at `path` is split: by example, and under `spatial` keys in space."""
    names = {getattr(key, "key", None) for key in path}
    if names.intersection(spatial) and mesh.shape["space"] > 1:
        return PartitionSpec("data", "space")
    return PartitionSpec("data")


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
