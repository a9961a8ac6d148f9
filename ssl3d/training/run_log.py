"""What a run tells: a progress bar, `metrics.jsonl`, TensorBoard, one last line."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ssl3d import metrics
from ssl3d.atomic import atomic_write


class Report:
    """Writes from the first process alone; in the others it does nothing.

    Args:
      workdir: where `metrics.jsonl` and the event files go.
      steps: the whole run's length.
      step: where this run begins; lines of an earlier run beyond it are dropped, as those steps
        are made again.
    """

    def __init__(self, workdir: Path, steps: int, step: int) -> None:
        self._active = jax.process_index() == 0
        self._metrics = workdir / "metrics.jsonl"
        if not self._active:
            return
        _truncate(self._metrics, step)
        self._events = SummaryWriter(str(workdir), purge_step=step + 1)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not self._terminal,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} {remaining} left",
        )

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if self._active:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, step: int) -> None:
        if self._active:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`, the event files, and the screen."""
        if not self._active:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, "split": split} | as_json(values)) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        line = describe(values)
        if self._terminal and split == "train":
            self._bar.set_postfix_str(line)
        else:
            self.say(f"step {step:>6} {split:<5} {line}")

    def close(self) -> None:
        if self._active:
            self._events.close()
            self._bar.close()


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
        """Counts the time inside as "wait" (for data) or "pause" (no training at all)."""
        begin = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - begin

    def step(self) -> None:
        self._steps += 1

    def window(self, batch_size: int) -> dict[str, float]:
        """The figures since the last window, and starts the next."""
        spent = max(time.perf_counter() - self._start - self._spent["pause"], 1e-9)
        figures = {
            "volumes_per_second": self._steps * batch_size / spent,
            "data_wait": self._spent["wait"] / spent,
        }
        self.restart()
        return figures


def as_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Rounded numbers; None where a score is not defined, as JSON has no NaN."""
    rounded = {name: round(float(value), 6) for name, value in values.items()}
    return {name: value if math.isfinite(value) else None for name, value in rounded.items()}


def mean(total: np.ndarray, count: np.ndarray) -> float:
    """sum / count over all examples; NaN where there is nothing to count."""
    whole = float(np.sum(count))
    return float(np.sum(total)) / whole if whole > 0 else math.nan


def describe(values: Mapping[str, float]) -> str:
    """The numbers of a log point as a person reads them."""
    values = {name: math.nan if value is None else value for name, value in values.items()}
    parts = [f"loss {values['loss']:.3f}"]
    if "accuracy" in values:
        accuracy = f"accuracy {values['accuracy']:.3f}"
        if "accuracy_low" in values:
            accuracy += f" [{values['accuracy_low']:.3f}, {values['accuracy_high']:.3f}]"
        parts.append(f"{accuracy} (chance {values['chance']:.3f})")
    if "dice" in values:
        dice = f"dice {values['dice']:.3f}"
        if "dice_low" in values:
            dice += f" [{values['dice_low']:.3f}, {values['dice_high']:.3f}]"
        parts.append(dice)
    if "kappa" in values:
        parts.append(f"kappa {values['kappa']:.3f}")
    if "accuracy_histogram" in values:
        parts.append(f"histogram {values['accuracy_histogram']:.3f}")
    if "volumes_per_second" in values:
        parts.append(f"{values['volumes_per_second']:.1f} volumes/s")
    return " ".join(parts)


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`; a last line that a kill cut short is left out."""
    file = workdir / "metrics.jsonl"
    lines = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _truncate(file: Path, step: int) -> None:
    # A run that begins anew validates its untrained network again: nothing of step 0 stays.
    kept = [line for line in read_metrics(file.parent) if 0 < step >= line["step"]]
    with atomic_write(file) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))


def bootstrap(
    sums: np.ndarray, counts: np.ndarray, groups: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of sum / count by resampling groups (subjects) with replacement.

    The ratio itself, twice, where there is one group alone.

    Args:
      sums, counts: [M], of each example.
      groups: int [M]; examples of one group are drawn together.
    """

    def ratio(weights: np.ndarray) -> np.ndarray:
        return weights @ sums / np.maximum(weights @ counts, 1e-12)

    if np.unique(groups).size == 1:
        value = float(ratio(np.ones(len(sums))))
        return value, value
    return metrics.bootstrap_interval(ratio, groups, seed)
