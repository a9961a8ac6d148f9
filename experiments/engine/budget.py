"""A study within a number of minutes: how many cells, of how many steps.

First a few steps of the study's own runs are timed. Then the grid is reduced, in the order of the
least loss, until its steps need not fall below a half: repetitions, by halves, to two; amounts of
labels to the lowest and the highest; methods to the study's brief list; labels to the lowest
amount. The remaining time scales the steps of all runs alike: the comparison is fair at any size.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ssl3d import documents
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError
from ssl3d.experiments.engine import grid, runs, worker
from ssl3d.experiments.engine.grid import Job, Size
from ssl3d.experiments.engine.runs import Connect
from ssl3d.experiments.engine.study import StudyData

FILE, PROBE = "plan.json", "probe"
VALIDATIONS = 8  # per downstream run, where time is short
_MARGIN = 0.85  # share of the time that is planned; the rest is for the report and the unforeseen
_LEAST_SCALE = 0.5  # of the steps; below it the grid is reduced instead, while it can be
_LEAST_STEPS = 20  # with fewer nothing is learned
_PROBE_STEPS = 6


class Cost(NamedTuple):
    """Seconds of a run: `fixed` (start, compilation, test), per validation and per step."""

    fixed: float
    validation: float
    step: float

    def of(self, job: Job, scale: float = 1.0) -> float:
        """Seconds of a job with its steps scaled. Its first validation precedes the first step."""
        validations = math.ceil(job.overrides["steps"] / job.overrides["validate_every"]) + 1
        return self.fixed + validations * self.validation + scale * job.row["steps"] * self.step


class Budget(NamedTuple):
    """What fits into the minutes, decided once per output folder: the content of plan.json."""

    budget_minutes: float
    full: Size  # as asked for
    size: Size  # as it fits
    scale: float  # of all numbers of steps
    seconds: dict[str, Cost]  # of a run, by its kind

    def latest_start(self, job: Job, deadline: float) -> float:
        """When a run must start to end before the deadline."""
        return deadline - self.seconds.get(kind(job), Cost(0, 0, 0)).of(job)


def read(output: Path) -> Budget | None:
    """The budget of an output folder, if it has one."""
    if not (output / FILE).exists():
        return None
    remedy = "give another --output"
    kept = documents.read_object(output / FILE, remedy)
    kept.pop("parts", None)  # of earlier versions
    with documents.fields(output / FILE, remedy):
        for key in ("full", "size"):
            lists = {name: tuple(kept[key][name]) for name in ("methods", "labels", "modes")}
            kept[key] = Size(**kept[key] | lists)
        kept["seconds"] = {name: Cost(**cost) for name, cost in kept["seconds"].items()}
        return Budget(**kept)


def sizes(full: Size, brief: Sequence[str]) -> list[Size]:
    """The candidate sizes: the full one first, each with fewer cells than the one before."""
    few = tuple(name for name in full.methods if name in brief) or full.methods
    small = full._replace(methods=few, labels=full.labels[:1], modes=full.modes[:1])
    ends = tuple(dict.fromkeys((full.labels[0], full.labels[-1])))
    fewer = min(full.repetitions, 2)
    halves = [full.repetitions >> i for i in range(1, full.repetitions.bit_length())]
    candidates = [
        *(full._replace(repetitions=count) for count in halves if count > fewer),
        full._replace(repetitions=fewer),
        full._replace(repetitions=fewer, labels=ends, modes=full.modes[:1]),
        small._replace(labels=ends),
        small._replace(labels=ends, repetitions=fewer),
        *(small._replace(repetitions=count) for count in (full.repetitions, fewer, 1)),
    ]
    kept = [full]
    for size in candidates:
        if len(grid.cells(size)) < len(grid.cells(kept[-1])):
            kept.append(size)
    return kept


def all_runs(jobs: Iterable[Job]) -> list[Job]:
    """The cells and the pretrainings they need, each once."""
    return list({one.name: one for job in jobs for one in (job.needs, job) if one}.values())


def scale_to_fit(jobs: Sequence[Job], cost: Callable[[Job], Cost], seconds: float) -> float:
    """The factor of all steps with which the jobs take this long, at most 1; can be negative."""
    fixed = sum(cost(job).of(job, 0) for job in jobs)
    return min(1.0, (seconds - fixed) / sum(cost(job).step * job.row["steps"] for job in jobs))


def kind(job: Job) -> str:
    """Runs of one kind have the same cost: a pretraining's method, or a cell's config."""
    return job.row["method"] if job.name.startswith(grid.PRETRAINING) else job.config


def choose(
    tried: Sequence[Size],
    jobs_of: Callable[[Size], Sequence[Job]],
    measure: Callable[[Job], Cost],
    left: Callable[[], float],
) -> tuple[Size, float, dict[str, Cost]]:
    """The first size that fits, the scale of its steps, and the costs by kind; or `UserError`.

    Args:
      jobs_of: the runs of a size at full length, pretraining included.
      measure: the cost of a run; takes time itself, called once per kind.
      left: seconds that all workers together still have.
    """
    costs: dict[str, Cost] = {}

    def cost(job: Job) -> Cost:
        if kind(job) not in costs:
            costs[kind(job)] = measure(job)
        return costs[kind(job)]

    for size in tried:
        jobs, is_last = jobs_of(size), size == tried[-1]
        typical = cost(next(job for job in jobs if job.name.startswith(grid.CELLS)))
        # A kind without a measurement costs at least its start, and as much again to measure.
        least = typical.fixed * len({kind(job) for job in jobs} - costs.keys()) + sum(
            costs[kind(job)].of(job, _LEAST_SCALE) if kind(job) in costs else typical.fixed
            for job in jobs
        )
        if least <= _MARGIN * left() or is_last:
            for job in jobs:
                cost(job)
            scale = scale_to_fit(jobs, cost, _MARGIN * left())
            shortest = scale * min(job.row["steps"] for job in jobs)
            if (scale >= _LEAST_SCALE or is_last) and shortest >= _LEAST_STEPS:
                return size, scale, costs
    needed = sum(cost(job).of(job, _LEAST_STEPS / job.row["steps"]) for job in jobs)
    minutes = math.ceil(needed / _MARGIN / 60) + 1
    raise UserError(f"--budget: too short here, the smallest study takes {minutes} minutes or more")


def probe(output: Path, job: Job, connect: Connect) -> Cost:
    """Times a few steps of a run, with the evaluation of a cell. Raises as `runs.work` does."""
    few = {"steps": _PROBE_STEPS, "validate_every": _PROBE_STEPS, "log_every": 1}
    few |= {"optimizer.warmup_steps": 1}
    if "transfer.warmup_steps" in job.overrides:
        few["transfer.warmup_steps"] = 0
    # Its pretraining does not exist yet; random weights cost the same.
    random = {"init.encoder": "", "transfer.mode": "random"} if job.needs else {}
    folder = f"{PROBE}/{job.name.replace('/', '-')}"
    shutil.rmtree(output / folder, ignore_errors=True)  # of an interrupted measurement
    overrides, row = {**job.overrides, **few, **random}, {**job.row, "probe": True}
    short = dataclasses.replace(job, name=folder, overrides=overrides, row=row, needs=None)
    started = time.monotonic()
    with contextlib.redirect_stdout(None):
        runs.work(output, [short], connect)
    seconds = time.monotonic() - started
    row = json.loads((output / folder / worker.RESULT).read_text())["row"]
    shutil.rmtree(output / folder)
    fixed = seconds - 2 * row["validation_seconds"] - _PROBE_STEPS * row["step_seconds"]
    return Cost(max(fixed, 0.0), row["validation_seconds"], row["step_seconds"])


def agree(
    data: StudyData, full: Size, minutes: float, deadline: float, output: Path, connect: Connect
) -> tuple[StudyData, Budget]:
    """The shortened study and the budget of its output, decided on the first call."""
    study = dataclasses.replace(data.study, validations=VALIDATIONS)
    data = dataclasses.replace(data, study=study)

    if not (output / FILE).exists():
        print("measuring seconds per step", flush=True)
        with connect() as client:
            workers = len(client.nthreads())
        size, scale, costs = choose(
            sizes(full, study.brief),
            lambda size: all_runs(grid.jobs(data, grid.cells(size))),
            lambda job: probe(output, job, connect),
            lambda: workers * (deadline - time.time()),
        )
        document = Budget(minutes, full, size, scale, costs)._asdict()
        document |= {"full": full._asdict(), "size": size._asdict()}
        document["seconds"] = {name: cost._asdict() for name, cost in costs.items()}
        with atomic_write(output / FILE) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n")
    found = read(output)
    assert found
    for key, kept, value in zip(Budget._fields, found, (minutes, full), strict=False):
        if kept != value:
            raise UserError(
                f"{output / FILE}: was made for {key}={kept}, not {value}; ask for the same to "
                "continue, or give another --output"
            )
    return dataclasses.replace(data, scale=found.scale), found
