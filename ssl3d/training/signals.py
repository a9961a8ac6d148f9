"""Stopping a run on request: Ctrl-C, SIGTERM, or the preemption notice of a cluster."""

from __future__ import annotations

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Inside this context a signal asks the run to save and end; a second one ends it at once.

    Attributes:
      name: of the signal received, e.g. "SIGTERM"; "" before.
    """

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> StopRequest:
        # With several hosts jax itself listens, so that all stop after the same step.
        watched = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {number: signal.signal(number, self._note) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def received(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer on all hosts."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return bool(self.name)
