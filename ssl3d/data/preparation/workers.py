"""Parallel processing of cases in worker processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from ssl3d.errors import UserError

Result = TypeVar("Result")


def in_parallel(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int, title: str
) -> Iterator[tuple[int, Result | UserError]]:
    """Calls `function(*call)` for each call; yields (index, result or `UserError`) as they finish.

    A worker process that dies (most often: out of memory) is the error of its call.

    Args:
      calls: arguments; the first is a path, or a case with `files`.

    Raises:
      OSError: the disk is full or not writable.
    """
    bar = tqdm(total=len(calls), desc=title, unit="case", disable=None)
    with bar:
        if workers == 1:
            for index, call in enumerate(calls):
                yield index, _attempt(function, call)
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
        return UserError(
            f"{_files(call)}: the process at work on it was killed, most likely for lack of "
            "memory; run again with fewer --workers (finished cases are kept)"
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
