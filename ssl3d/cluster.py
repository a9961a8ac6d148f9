"""Dask clusters: one elsewhere, or workers within this process. Dask is loaded on first use.

with connect("tcp://10.0.0.1:8786") as client:
    for future in distributed.as_completed(client.map(function, arguments)):
        print(result(future))
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl3d.errors import UserError

if TYPE_CHECKING:
    from distributed import Client, Future

# Seconds for a scheduler to answer.
_PATIENCE = 20
_ACCELERATORS, _WORKERS = "ssl3d.accelerators", "ssl3d.workers"  # keys of Dask's settings


@contextlib.contextmanager
def connect(scheduler: str, workers: int | None = None) -> Iterator[Client]:
    """A client of the cluster at an address, or of workers that are threads of this process.

    Waits until the cluster has a worker.

    Args:
      scheduler: the address; "" for the workers of this process.
      workers: their number, if not one per accelerator of this machine.

    Raises:
      UserError: no scheduler answers at the address, or its workers take several tasks at a time.
    """
    import dask
    import distributed

    _silence()
    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if not scheduler:
            workers = workers or max(count_accelerators(), 1)
            settings = {
                # A laptop that was asleep has not lost its workers.
                "distributed.scheduler.worker-ttl": None,
                _ACCELERATORS: count_accelerators(),
                _WORKERS: workers,
            }
            stack.enter_context(dask.config.set(settings))
            local = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                memory_limit=0,  # that of this process is not theirs
                dashboard_address=None,
                # Its server runs without a dashboard too; not on 8787, which may be taken.
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
            address = stack.enter_context(local)
        try:
            client = distributed.Client(address, timeout=_PATIENCE)
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--scheduler={scheduler}: no Dask scheduler here ({reason})") from None
        stack.enter_context(client)
        if not client.nthreads():
            print(f"waiting for the Dask workers of {scheduler}", flush=True)
            client.wait_for_workers(1)
        if max(client.nthreads().values(), default=1) > 1:
            remedy = "start them with --nthreads 1, and as many as fit by --nworkers"
            raise UserError(f"--scheduler={scheduler}: its workers have several threads; {remedy}")
        yield client


def result(future: Future) -> Any:
    """The result of a future that has ended; raises what its function raised, or:

    Raises:
      BrokenExecutor: the workers that tried it were killed, each in turn.
      UserError: the scheduler is gone, or it or its workers lack a module of the project.
    """
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        raise BrokenExecutor from None
    except (ImportError, RuntimeError) as error:
        reason = error.__cause__ or error  # the scheduler's has one
        if not isinstance(reason, ImportError):
            raise
        remedy = "start it in the same environment, with the repository in PYTHONPATH"
        raise UserError(f"the Dask cluster cannot start the work ({reason}); {remedy}") from None
    except CancelledError:
        raise UserError("the Dask scheduler is gone; start one and run again to continue") from None


def wait_to_see(file: Path) -> None:
    """Waits, up to a minute, for a file of another host to show in a network folder."""
    latest = time.monotonic() + 60
    while not file.exists() and time.monotonic() < latest:
        time.sleep(1)


def environment() -> dict[str, str]:
    """Variables for a process of this Dask worker: JAX there sees the worker's accelerator alone.

    Only on workers of `connect`'s own process; elsewhere whoever starts them divides the devices.
    """
    import dask
    import distributed

    if not (accelerators := dask.config.get(_ACCELERATORS, 0)):
        return {}
    own = int(distributed.get_worker().name) % accelerators
    names = "JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"
    bounds = "TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"
    return dict.fromkeys(names, str(own)) | dict.fromkeys(bounds, "1,1,1")


def cores() -> set[int]:
    """The cores for a process of this Dask worker: its share of this machine's; empty for all.

    Small networks use several cores badly: processes with one each do more together. Only on
    workers of `connect`'s own process, where there are several and no accelerators.
    """
    import dask
    import distributed

    workers = dask.config.get(_WORKERS, 1)
    if workers == 1 or dask.config.get(_ACCELERATORS, 0) or not hasattr(os, "sched_getaffinity"):
        return set()
    own, available = int(distributed.get_worker().name), sorted(os.sched_getaffinity(0))
    return set(available[own::workers] or [available[own % len(available)]])


@functools.cache
def count_accelerators() -> int:
    """The accelerator devices of this machine that JAX finds."""
    # In a process of its own: JAX keeps the devices that it has seen.
    code = "import jax; print(sum(d.platform != 'cpu' for d in jax.local_devices()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return 0 if found.returncode else int(found.stdout.split()[-1])


def _silence() -> None:
    """Keeps Dask's log from the terminal: what matters of it becomes an error of our own."""
    import distributed

    warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
