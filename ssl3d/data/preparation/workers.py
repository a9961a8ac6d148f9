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

    Raises:
      UserError: a worker process died (most often: out of memory).
      OSError: the disk is full or not writable.
    """
    bar = tqdm(total=len(calls), desc=title, unit="case", disable=None)
    with bar:
        if workers == 1:
            for index, call in enumerate(calls):
                yield index, _attempt(function, call)
                bar.update()
            return
        # Spawned, not forked: the parent has threads (the progress bar's, a test runner's).
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            min(workers, max(1, len(calls))), mp_context=context, initializer=_start_worker
        ) as pool:
            futures = {
                pool.submit(_attempt, function, call): index for index, call in enumerate(calls)
            }
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield futures[future], future.result()
                    bar.update()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, most likely for lack of memory; run again "
                    "with fewer --workers (finished cases are kept)"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


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
        return UserError("not enough memory; run again with fewer --workers")
