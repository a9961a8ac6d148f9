"""What a run reports: printed lines, a progress bar, `metrics.jsonl`, and the trackers."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from ssl3d import documents, intervals
from ssl3d.atomic import atomic_write
from ssl3d.errors import DivergedError, UserError
from ssl3d.training import trackers

# How many steps the host may be ahead of the device: one to hide the dispatch, and a spare.
_STEPS_AHEAD = 2
_REMEDY = "restore or remove the file"


class RunLog:
    """Writes from the first process alone; in the others it does nothing.

    Args:
      workdir: where `metrics.jsonl` and the event files go.
      config: of the run.
      step: where this run begins; later lines of an earlier run are dropped, as their steps are
        repeated.
      headline, shown: the metrics to print, see `tasks.Task`.

    Raises:
      UserError: a tracker that the config names does not start.
    """

    def __init__(
        self,
        workdir: Path,
        config: ml_collections.ConfigDict,
        step: int,
        headline: str,
        shown: Sequence[str] = (),
    ) -> None:
        self._headline, self._shown = headline, shown
        self._steps = config.steps
        self._begun: tuple[int, float] | None = None  # step and time
        self._active = jax.process_index() == 0
        self._metrics = workdir / "metrics.jsonl"
        if not self._active:
            return
        _truncate(self._metrics, step)
        score = f"val/{headline}"
        self._trackers = trackers.Trackers(config, workdir, step, score, self.say)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not self._terminal,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} {remaining} left",
        )

    def say(self, text: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        if self._active:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, step: int) -> None:
        if self._active:
            self._bar.update(step - self._bar.n)
            # From the end of the first step on, which compiles.
            self._begun = self._begun or (step, time.monotonic())

    def _left(self, step: int) -> str:
        """The time left at the mean speed so far, validations included; "" before it is known."""
        if self._begun is None or step <= self._begun[0] or step >= self._steps:
            return ""
        first, since = self._begun
        seconds = (time.monotonic() - since) / (step - first) * (self._steps - step)
        return f", {tqdm.format_interval(seconds)} left"

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one line to `metrics.jsonl`, the event files, and the screen."""
        if not self._active:
            return
        line = json.dumps({"step": step, "split": split} | as_json(values)) + "\n"
        # Not created: a file that was removed would go on without its first steps.
        file = os.open(self._metrics, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(file, "w") as opened:
            opened.write(line)
        self._trackers.scalars(step, {f"{split}/{name}": v for name, v in values.items()})
        if split == "probe":
            line = describe_probe(values)
        else:
            line = describe(values, self._headline, self._shown)
        if self._terminal and split == "train":
            self._bar.set_postfix_str(line)
        else:
            self.say(f"step {step:>6} {split:<5} {line}{self._left(step) * (split == 'train')}")

    def picture(self, step: int, name: str, make: Callable[[], trackers.Picture]) -> None:
        """Makes a picture, and shows it where the run is tracked."""
        if self._active:
            self._trackers.picture(step, name, make())

    def close(self) -> None:
        if self._active:
            self._trackers.close()
            self._bar.close()


class Window:
    """The metrics of the steps since the last log point; on the device until they are fetched.

    Args:
      case_ids: of the data set, in order, to name the cases of a failing step.
      fetched: what a resumed run had of the window when it was saved.
    """

    def __init__(self, case_ids: list[str], fetched: Sequence[dict[str, Any]] = ()) -> None:
        self._case_ids = case_ids
        self._pending: collections.deque[tuple[int, np.ndarray, dict[str, Any]]]
        self._pending = collections.deque()
        self._fetched = list(fetched)

    def add(self, step: int, cases: np.ndarray, metrics: dict[str, Any]) -> None:
        """Keeps a step's metrics, and waits until the device is at most two steps behind."""
        self._pending.append((step, cases, metrics))
        if len(self._pending) > _STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _STEPS_AHEAD][2])

    def fetch(self) -> list[dict[str, Any]]:
        """Waits for the device; the metrics so far.

        Raises:
          DivergedError: a loss or gradient that is not finite.
        """
        while self._pending:
            step, cases, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"]):
                names = ", ".join(self._case_ids[i] for i in cases)
                raise DivergedError(
                    f"step {step}: loss {metrics['loss']}, gradient norm "
                    f"{metrics['gradient_norm']}; cases {names}; lower "
                    "config.optimizer.learning_rate or check these cases"
                )
            self._fetched.append(metrics)
        return self._fetched

    def means(self) -> dict[str, float]:
        """The means over the window's steps; starts the next window."""
        self.fetch()
        stacked = jax.tree.map(lambda *leaves: np.asarray(leaves, np.float64), *self._fetched)
        self._fetched = []
        means = {name: float(stacked.pop(name).mean()) for name in ("loss", "gradient_norm")}
        return means | {
            name: intervals.ratio(total, count) for name, (total, count) in stacked.items()
        }


class Clock:
    """Wall time of training, and the share of it spent waiting for data, per log window."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._start = time.perf_counter()
        self._spent = {"wait": 0.0, "pause": 0.0}
        self._steps = 0

    @contextlib.contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Counts the time inside as "wait" (for data) or "pause" (not training)."""
        begin = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - begin

    def step(self) -> None:
        self._steps += 1

    def window(self, batch_size: int) -> dict[str, float]:
        """Throughput and data wait since the last window; starts the next."""
        spent = max(time.perf_counter() - self._start - self._spent["pause"], 1e-9)
        figures = {
            "volumes_per_second": self._steps * batch_size / spent,
            "data_wait": self._spent["wait"] / spent,
        }
        self.restart()
        return figures


def as_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Rounded numbers; None for an undefined score, as JSON has no NaN."""
    return {name: _rounded(float(value)) for name, value in values.items()}


def _rounded(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    # Learning rates are small: six decimals would leave nothing of them.
    return round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.4g}")


def describe(values: Mapping[str, float | None], headline: str, shown: Sequence[str] = ()) -> str:
    """The numbers of a log point as one readable line.

    Args:
      values: name -> number, None for NaN.
      headline, shown: see `tasks.Task`; those absent from `values` are left out.
    """
    numbers = {name: math.nan if value is None else value for name, value in values.items()}
    parts = [f"loss {numbers['loss']:.3f}"]
    if headline in numbers:
        parts.append(f"{headline} {numbers[headline]:.3f}")
        if f"{headline}_low" in numbers:
            parts.append(f"[{numbers[f'{headline}_low']:.3f}, {numbers[f'{headline}_high']:.3f}]")
        if "chance" in numbers:
            parts.append(f"(chance {numbers['chance']:.3f})")
    for name in shown:
        if name in numbers:
            parts.append(f"{name.removeprefix(f'{headline}_')} {numbers[name]:.3f}")
    if "volumes_per_second" in numbers:
        parts.append(f"{numbers['volumes_per_second']:.1f} volumes/s")
    return " ".join(parts)


def describe_probe(values: Mapping[str, float]) -> str:
    """The scores of a probe as one readable line; the first is the encoder's."""
    (name, score), *others = values.items()
    beside = ", ".join(f"{row} {value:.3f}" for row, value in others if row != "seconds")
    return f"{name} {score:.3f} ({beside})"


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, without a last line that a kill cut short.

    Raises `UserError`: a damaged file.
    """
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    lines = documents.read_lines(file, _REMEDY)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("step"), int) or not isinstance(line.get("split"), str):
            raise UserError(f"{file}: line {number} has no step or no split; {_REMEDY}")
        for name, value in line.items():
            if name != "split" and not isinstance(value, int | float | None):
                raise UserError(f"{file}: line {number}: {name} is no number; {_REMEDY}")
    return lines


def _truncate(file: Path, step: int) -> None:
    # A run that starts afresh validates its untrained network again: its step 0 is dropped too.
    kept = [line for line in read_metrics(file.parent) if 0 < step >= line["step"]]
    with atomic_write(file) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
