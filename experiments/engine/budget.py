"""What fits into a number of minutes: how many cells, of how many steps.

A few steps of the study's own runs are measured first. Then the grid is cut down, the least loss
first, until its steps need not be cut to less than a half: repetitions, by halves, to two; amounts
of labels to the lowest and the highest; methods to the study's brief list; labels to the lowest
amount alone. What is left over scales the steps of all runs alike, so that the comparison stays
fair at any size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.engine import claims, grid, runs, worker
from experiments.engine.grid import Job
from experiments.engine.study_data import Plan
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError

PLAN = "plan.json"
PROBE = "probe"
VALIDATIONS = 8  # of a downstream run, where time is short
# Of the time; the rest is for what the measurement did not foresee, and for the report.
_MARGIN = 0.85
# A grid is cut down further rather than its steps to less than this, while it can be.
_LEAST_SCALE = 0.5
# Below it nothing is learned, and no study is better than that one.
_LEAST_STEPS = 20
_PROBE_STEPS = 6


class Size(NamedTuple):
    """A grid that a budget may allow."""

    methods: tuple[str, ...]
    labels: tuple[str, ...]
    repetitions: int
    modes: tuple[str, ...]
    first_repetition: int = 1


class Cost(NamedTuple):
    """Seconds of a run: `fixed` (start, compilation, test), per validation and per step."""

    fixed: float
    validation: float
    step: float

    def of(self, steps: float, validations: int) -> float:
        """Of a run of so many steps; it validates before the first, too."""
        return self.fixed + (validations + 1) * self.validation + steps * self.step


def sizes(full: Size, brief: Sequence[str]) -> list[Size]:
    """The grids to try, the full one first, each with fewer cells than the one before."""
    few = tuple(name for name in full.methods if name in brief) or full.methods
    small = full._replace(methods=few, labels=full.labels[:1], modes=full.modes[:1])
    ends = tuple(dict.fromkeys((full.labels[0], full.labels[-1])))
    fewer = min(full.repetitions, 2)
    halves = [full.repetitions >> i for i in range(1, full.repetitions.bit_length())]
    smaller = (
        *(full._replace(repetitions=count) for count in halves if count > fewer),
        full._replace(repetitions=fewer),
        full._replace(repetitions=fewer, labels=ends, modes=full.modes[:1]),
        small._replace(labels=ends),
        small._replace(labels=ends, repetitions=fewer),
        small,
        small._replace(repetitions=fewer),
        small._replace(repetitions=1),
    )
    kept = [full]
    for size in smaller:
        if len(grid.cells(*size)) < len(grid.cells(*kept[-1])):
            kept.append(size)
    return kept


def all_runs(jobs: Iterable[Job]) -> list[Job]:
    """The cells and each pretraining that they need, once."""
    found: dict[str, Job] = {}
    for job in jobs:
        for one in (job.needs, job):
            if one:
                found[one.name] = one
    return list(found.values())


def scale_to_fit(jobs: Sequence[Job], cost: Callable[[Job], Cost], seconds: float) -> float:
    """The factor of all steps with which the jobs take this long, at most 1; can be negative."""
    fixed = sum(cost(job).of(0, _validations(job)) for job in jobs)
    variable = sum(cost(job).step * job.row["steps"] for job in jobs)
    return min(1.0, (seconds - fixed) / variable)


def _validations(job: Job) -> int:
    """How often it validates after the first step, at the end in any case."""
    return math.ceil(job.overrides["steps"] / job.overrides["validate_every"])


def kind(job: Job) -> str:
    """Runs of one kind cost alike: a pretraining by its method, a cell by its network's rank."""
    return job.row["method"] if job.name.startswith(grid.PRETRAINING) else job.argument


def choose(
    tried: Sequence[Size],
    jobs_of: Callable[[Size], Sequence[Job]],
    measure: Callable[[Job], Cost],
    left: Callable[[], float],
) -> tuple[Size, float, dict[str, Cost]]:
    """The first grid that fits, and the scale of its steps.

    Args:
      tried: as of `sizes`.
      jobs_of: the runs of a grid, at full length, pretraining included.
      measure: the cost of a run like this one; takes time itself, asked once for each kind.
      left: seconds, of all processes together, less what measuring has taken.

    Raises:
      UserError: not even the smallest fits.
    """
    costs: dict[str, Cost] = {}

    def cost(job: Job) -> Cost:
        if kind(job) not in costs:
            costs[kind(job)] = measure(job)
        return costs[kind(job)]

    for size in tried:
        jobs = jobs_of(size)
        typical = cost(next(job for job in jobs if job.name.startswith(grid.CELLS)))
        # What is not measured yet costs at least its start, and as much again to measure.
        least = sum(
            costs[kind(job)].of(_LEAST_SCALE * job.row["steps"], _validations(job))
            if kind(job) in costs
            else typical.fixed
            for job in jobs
        )
        least += typical.fixed * len({kind(job) for job in jobs} - costs.keys())
        is_last = size == tried[-1]
        if least > _MARGIN * left() and not is_last:
            continue
        for job in jobs:
            cost(job)
        scale = scale_to_fit(jobs, cost, _MARGIN * left())
        shortest = scale * min(job.row["steps"] for job in jobs)
        if (scale >= _LEAST_SCALE or is_last) and shortest >= _LEAST_STEPS:
            return size, scale, costs
    needed = sum(cost(job).of(_LEAST_STEPS, _validations(job)) for job in jobs)
    minutes = math.ceil(needed / _MARGIN / 60) + 1
    raise UserError(f"--budget: too short here, the smallest study takes {minutes} minutes or more")


def probe(output: Path, job: Job, columns: Sequence[Sequence[Any]]) -> Cost:
    """Measures a few steps of a run in a process of its own, a cell with its evaluation.

    Raises:
      UserError: what the run says of its input.
      RunError: it failed.
    """
    encoder = {}
    if job.needs:  # which is not there yet: random weights cost the same
        encoder = {"init.encoder": "", "transfer.mode": "random"}
    few = {
        "steps": _PROBE_STEPS,
        "validate_every": _PROBE_STEPS,
        "log_every": 1,
        "optimizer.warmup_steps": 1,
    }
    if "transfer.warmup_steps" in job.overrides:
        few["transfer.warmup_steps"] = 0
    folder = f"{PROBE}/{job.name.replace('/', '-')}"
    shutil.rmtree(output / folder, ignore_errors=True)  # of a measurement that was broken off
    row = {**job.row, "probe": True}
    short = Job(folder, job.config, job.argument, {**job.overrides, **few, **encoder}, row)
    started = time.monotonic()
    scored = columns if job.name.startswith(grid.CELLS) else []
    runs.failures(runs.work(output, [short], scored, say=lambda text: None))
    seconds = time.monotonic() - started
    row = json.loads((output / folder / worker.RESULT).read_text())["row"]
    shutil.rmtree(output / folder)
    fixed = seconds - 2 * row["validation_seconds"] - _PROBE_STEPS * row["step_seconds"]
    return Cost(max(fixed, 0.0), row["validation_seconds"], row["step_seconds"])


def stored(output: Path) -> tuple[float, Size] | None:
    """The minutes of the folder's plan and the grid that it was cut down from, if it has one."""
    if not (output / PLAN).exists():
        return None
    document = json.loads((output / PLAN).read_text())
    return document["budget_minutes"], _from_json(document["full"])


def plan_for(
    plan: Plan,
    full: Size,
    minutes: float,
    deadline: float,
    output: Path,
    parts: int,
    say: Callable[[str], None] = print,
) -> tuple[Plan, Size, dict[str, Any]]:
    """The study that fits, decided once for a folder and then kept in its plan.json.

    Args:
      deadline: of `time.monotonic`, when the minutes are over.
      parts: processes that share the grid, each for so many minutes.

    Returns:
      The plan with its scale, the grid, and what plan.json says.

    Raises:
      UserError: the folder's plan is of another budget or grid, or nothing fits.
    """
    columns = [list(column) for column in plan.study.columns]
    short = dataclasses.replace(plan.study, validations=VALIDATIONS)
    plan = dataclasses.replace(plan, study=short)
    asked = {"budget_minutes": minutes, "full": _as_json(full)}

    def jobs_of(size: Size) -> list[Job]:
        return all_runs(grid.jobs(plan, grid.cells(*size)))

    found = _plan_or_claim(output, say)
    if isinstance(found, claims.Claim):
        say("measuring seconds per step")
        with claims.kept_alive(found, lambda: None):
            size, scale, costs = choose(
                sizes(full, plan.study.brief),
                jobs_of,
                lambda job: probe(output, job, columns),
                lambda: parts * (deadline - time.monotonic()),
            )
            seconds = {name: cost._asdict() for name, cost in costs.items()}
            document = asked | {"size": _as_json(size), "scale": scale, "seconds": seconds}
            document["parts"] = parts
            with atomic_write(output / PLAN) as partial:
                partial.write_text(json.dumps(document, indent=1) + "\n")
    else:
        # Plans of older versions lack what has a default now.
        document = found | {"full": _as_json(_from_json(found["full"]))}
    for key, value in asked.items():
        if document[key] != value:
            raise UserError(
                f"{output / PLAN}: was made for {key}={document[key]}, not {value}; ask for the "
                "same to go on with it, or give another --output"
            )
    scaled = dataclasses.replace(plan, scale=document["scale"])
    return scaled, _from_json(document["size"]), document


def _as_json(size: Size) -> dict[str, Any]:
    return json.loads(json.dumps(size._asdict()))


def _from_json(kept: dict[str, Any]) -> Size:
    return Size(**{k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})


def _plan_or_claim(output: Path, say: Callable[[str], None]) -> dict[str, Any] | claims.Claim:
    """The plan, once it is there; or the claim on making it."""
    told = False
    while not (output / PLAN).exists():
        claim = claims.take(output / "plan")
        if claim and not (output / PLAN).exists():
            return claim
        if claim:
            claims.give_back(claim)
        elif not told:
            say("waiting for another process to measure")
            told = True
        time.sleep(runs.LOOK)
    return json.loads((output / PLAN).read_text())


def clock(document: dict[str, Any], deadline: float) -> Callable[[Job], bool]:
    """Whether a run that has not begun would end in time, by what was measured."""
    costs = {name: Cost(**seconds) for name, seconds in document["seconds"].items()}

    def may_start(job: Job) -> bool:
        cost = costs.get(kind(job))
        if cost is None:
            return time.monotonic() < deadline
        needed = cost.of(job.row["steps"], _validations(job))
        return time.monotonic() + needed < deadline

    return may_start
