"""Parallel processing of cases in worker processes, here or on a Dask cluster."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from ssl3d import cluster
from ssl3d.errors import UserError

Result = TypeVar("Result")
# Calls that are sent at a time.
_BATCH = 1000
Workers = int | str  # a number of processes here, or the address of a Dask scheduler


def in_parallel(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: Workers, title: str
) -> Iterator[tuple[int, Result | UserError]]:
    """Calls `function(*call)` for each call; yields (index, result or `UserError`) as they finish.

    A worker process that dies (most often: out of memory) is the error of its call.

    Args:
      calls: arguments; the first is a path, or a case with `files`.

    Raises:
      OSError: the disk is full or not writable.
      UserError: the cluster cannot be reached, or cannot do the work.
    """
    bar = tqdm(total=len(calls), desc=title, unit="case", disable=None)
    with bar:
        if workers == 1:
            for index, call in enumerate(calls):
                yield index, _attempt(function, call)
                bar.update()
            return
        if isinstance(workers, str):
            for entry in _on_cluster(function, calls, workers):
                yield entry
                bar.update()
            return
        # A thread for each process, so that a process that dies fails its own case alone.
        with concurrent.futures.ThreadPoolExecutor(min(workers, max(1, len(calls)))) as threads:
            own = threading.local()
            pools: list[concurrent.futures.ProcessPoolExecutor] = []
            futures = {
                threads.submit(_in_process, own, pools, function, call): index
                for index, call in enumerate(calls)
            }
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield futures[future], future.result()
                    bar.update()
            finally:
                threads.shutdown(cancel_futures=True)
                for pool in pools:
                    pool.shutdown()


def _on_cluster(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], scheduler: str
) -> Iterator[tuple[int, Result | UserError]]:
    """A call that kills its worker is tried on others, and is then the error of its case."""
    if not calls:
        return
    with cluster.connect(scheduler) as client:
        import distributed

        attempt = functools.partial(_attempt, function)
        futures = client.map(attempt, calls, pure=False, batch_size=_BATCH)
        index = {future.key: number for number, future in enumerate(futures)}
        ended = distributed.as_completed(futures)
        del futures  # so that each is forgotten, on the cluster too, once it has been read
        for future in ended:
            try:
                yield index[future.key], cluster.result(future)
            except BrokenExecutor:
                call = calls[index[future.key]]
                yield index[future.key], _killed(call, "on Dask workers with more memory")


def _in_process(
    own: threading.local,
    pools: list[concurrent.futures.ProcessPoolExecutor],
    function: Callable[..., Result],
    call: tuple[Any, ...],
) -> Result | UserError:
    """`_attempt` in this thread's process, which is started where there is none (any more)."""
    if getattr(own, "pool", None) is None:
        # Spawned, not forked: the parent has threads (the progress bar's, a test runner's).
        context = multiprocessing.get_context("spawn")
        own.pool = concurrent.futures.ProcessPoolExecutor(
            1, mp_context=context, initializer=_start_worker
        )
        pools.append(own.pool)
    try:
        return own.pool.submit(_attempt, function, call).result()
    except BrokenProcessPool:
        own.pool = None
        return _killed(call, "with fewer --workers")


def _killed(call: tuple[Any, ...], remedy: str) -> UserError:
    return UserError(
        f"{_files(call)}: the process at work on it was killed, most likely for lack of memory; "
        f"run again {remedy} (finished cases are kept)"
    )


def _files(call: tuple[Any, ...]) -> Any:
    """The first file of a call, whose first argument is a path or a case."""
    return getattr(call[0], "files", call)[0]


def _start_worker() -> None:
    """Leaves interrupts to the parent process, and exits if the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _attempt(function: Callable[..., Result], call: tuple[Any, ...]) -> Result | UserError:
    """The result, or the error of this case; an OSError concerns all cases and propagates."""
    try:
        return function(*call)
    except UserError as error:
        return error
    except MemoryError:
        return UserError(f"{_files(call)}: not enough memory; run again with fewer --workers")
