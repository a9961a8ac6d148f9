"""What a study takes, before anything starts: time and memory of its runs, by kind.

On this machine a few steps of each kind of run are timed, once per output (costs.json). For GPUs,
which need not be at hand, the seconds of a step are the roofline of `ssl3d.plan`: a lower bound of
the training steps alone, without validation and tests.
"""

import contextlib
import dataclasses
import json
import math
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ssl3d import documents, processes
from ssl3d.atomic import write_json
from ssl3d.data import store
from ssl3d.errors import RunError, UserError
from ssl3d.experiments.engine import grid, runs
from ssl3d.experiments.engine.grid import Job
from ssl3d.experiments.engine.runs import Connect
from ssl3d.experiments.engine.study import Study, StudyData

FILE, PROBE = "costs.json", "probe"
_STEPS = 6
# Beginnings of keys that change no step's seconds: lengths, seeds, rates, and which cases.
_FREE = (
    *("steps", "validate_every", "seed", "transfer.", "init.", "data.label_"),
    *("optimizer.learning_rate", "optimizer.warmup_steps"),
)


class Cost(NamedTuple):
    """Of a kind of run: seconds in all but the steps, of a validation and of a step; bytes."""

    fixed: float
    validation: float
    step: float
    memory: float

    def seconds(self, job: Job) -> float:
        """Of a run. Its first validation precedes the first step."""
        validations = math.ceil(job.row["steps"] / job.overrides["validate_every"]) + 1
        return self.fixed + validations * self.validation + job.row["steps"] * self.step


def table(jobs: Sequence[Job], costs: Mapping[str, Cost], workers: int) -> str:
    """The kinds of runs with their costs, and the hours of all on so many workers."""
    rows = []
    for name, own in kinds(jobs).items():
        cost = costs.get(name, Cost(*[math.nan] * 4))
        hours = sum(map(cost.seconds, own)) / 3600
        rows.append((name, len(own), cost.step, 60 * hours / len(own), cost.memory / 1e9, hours))
    header = ["runs", "number", "seconds per step", "minutes each", "GB", "hours"]
    found = pd.DataFrame(rows, columns=header)
    shown = found.astype(object).where(found.notna(), "–")
    hours, untimed = found["hours"].sum(), found["runs"][found["hours"].isna()]
    cells = sum(job.name.startswith(grid.CELLS) for job in jobs)
    total = f"{cells} cells: {hours:.1f} hours of runs"
    if workers > 1:
        total += f"; {workers} at a time: about {hours / workers:.1f} hours"
    if len(untimed):
        total += f"; without {', '.join(untimed)}, which could not be timed"
    return f"{shown.to_markdown(index=False, floatfmt='.3g')}\n{total}"


def kinds(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The runs and the pretrainings that they need, each once, by what they cost alike."""
    found: dict[tuple[str, str], dict[str, Job]] = {}
    for job in jobs:
        for run in filter(None, (job.needs, job)):
            about = kind(run), _settings(run, (*_FREE, "data.path"))
            found.setdefault(about, {})[run.name] = run
    alike = Counter(name for name, _ in found)
    named = {}
    for (name, _), own in found.items():
        row = next(iter(own.values())).row
        apart = (row.get("labels"), row.get("arm")) if alike[name] > 1 else ()
        named[", ".join(filter(None, (name, *apart)))] = list(own.values())
    return named


def kind(job: Job) -> str:
    """Runs of one kind and with the same settings have the same seconds per step."""
    if job.name.startswith(grid.PRETRAINING):
        return f"{job.config} ({job.row['method']})"
    return job.config + ", frozen" * (job.overrides.get("transfer.mode") == "frozen")


def here(output: Path, jobs: Sequence[Job], connect: Connect, workers: int = 1) -> dict[str, Cost]:
    """The cost of each kind on this machine (or cluster); none of a kind that failed.

    Times what the output has not kept, or has kept of other settings, another machine or another
    number of workers, each with its share of the cores. Raises `UserError` and
    `processes.Stopped`; what was timed before is kept.
    """
    kept, firsts = read(output), {name: own[0] for name, own in kinds(jobs).items()}
    place = f"{platform.node()} x{workers}"
    keys = {name: f"{name} {_settings(job)} {place}" for name, job in firsts.items()}
    missing = [name for name, key in keys.items() if key not in kept]
    for number, name in enumerate(missing, 1):
        print(f"[{number} of {len(missing)}] timing {_STEPS} steps of {name}", flush=True)
        if cost := probe(output, firsts[name], connect):
            kept[keys[name]] = cost
            document = {key: cost._asdict() for key, cost in kept.items()}
            write_json(output / FILE, document)
    return {name: kept[key] for name, key in keys.items() if key in kept}


def _settings(job: Job, free: tuple[str, ...] = _FREE) -> str:
    """A short hash of the settings on which the seconds of a step depend."""
    kept = {key: value for key, value in job.overrides.items() if not key.startswith(free)}
    return grid.digest(json.dumps([job.argument, kept], sort_keys=True))


def read(output: Path) -> dict[str, Cost]:
    """The costs that an output keeps."""
    if not (output / FILE).exists():
        return {}
    remedy = "remove it to measure again"
    kept = documents.read_object(output / FILE, remedy)
    with documents.fields(output / FILE, remedy):
        return {
            name: Cost(**{key: float(value) for key, value in cost.items()})
            for name, cost in kept.items()
        }


def probe(output: Path, job: Job, connect: Connect) -> Cost | None:
    """Times a few steps of a run, with the evaluation of a cell; None if the run fails.

    Raises `UserError` and `processes.Stopped` as `runs.work` does.
    """
    few: dict[str, float] = {"steps": _STEPS, "validate_every": _STEPS, "log_every": 1}
    # Steps of no length cost the same, and none diverges.
    few |= {"optimizer.warmup_steps": 1, "optimizer.learning_rate": 1e-9}
    if "transfer.warmup_steps" in job.overrides:
        few["transfer.warmup_steps"] = 0
    folder = output / PROBE / job.name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)  # of a failed measurement
    overrides, row = untrained(job) | few, {**job.row, "probe": True}
    name = folder.relative_to(output).as_posix()
    short = dataclasses.replace(job, name=name, overrides=overrides, row=row, needs=None)
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(None):
            runs.work(output, [short], connect, grace=0)  # nothing of it is worth saving
    except RunError:
        print(f"not timed: {runs.last_words(folder)} (see {folder / runs.LOG})", flush=True)
        return None
    except processes.Stopped:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    seconds = time.monotonic() - started
    row = json.loads((folder / runs.RESULT).read_text())["row"]
    shutil.rmtree(folder)
    fixed = seconds - 2 * row["validation_seconds"] - _STEPS * row["step_seconds"]
    memory = 2.0**20 * row["peak_memory_mb"]
    return Cost(max(fixed, 0.0), row["validation_seconds"], row["step_seconds"], memory)


def untrained(job: Job) -> dict[str, Any]:
    """The overrides of a run without its pretraining, of which random weights cost the same."""
    mode = job.overrides.get("transfer.mode")
    known = {} if mode in (None, "frozen") else {"transfer.mode": "random"}
    return {**job.overrides, "init.encoder": "", **known}


def gpus(target: str) -> int:
    """The number of GPUs of a target such as h100x8, one per run; or `UserError`."""
    found = re.fullmatch(r"(?:h100|a100)x([1-9]\d*)", target)
    if not found:
        raise UserError(f"--estimate={target}: write GPUs, e.g. h100x8, or nothing: this machine")
    return int(found[1])


def planned(target: str, jobs: Sequence[Job]) -> dict[str, Cost]:
    """The cost of each kind on one GPU of a target, by `ssl3d.plan`.

    Raises `UserError` and `processes.Stopped`.
    """
    costs, found = {}, kinds(jobs)
    for number, (name, (job, *_)) in enumerate(found.items(), 1):
        command = [sys.executable, "-m", "ssl3d.plan", "--json", "--quick"]
        command += [f"--target={target.partition('x')[0]}x1"]
        command.append(f"--config={job.config}:{job.argument}")
        overrides = untrained(job) | {"mesh.space": 1}
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        print(f"[{number} of {len(found)}] compiling {name}", flush=True)
        with processes.stopping():
            run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"--estimate={target}: {name}: {processes.last_line(run.stderr)}")
        plan = json.loads(run.stdout.splitlines()[-1])
        costs[name] = Cost(0.0, 0.0, plan["seconds"], plan["memory"])
    return costs


def without_data(study: Study, splits: int = 1) -> StudyData:
    """The study on made-up manifests, whose runs have the steps and sizes of the study."""
    identity = tuple(map(tuple, np.eye(study.rank + 1).tolist()))
    cases = tuple(
        store.Case(
            *(f"c{i:03d}", f"c{i:03d}", split, (64,) * study.rank, 1, (1.0,) * study.rank),
            affine=identity,
            labelled=study.downstream == "segment",
            grade=i % 3 if study.downstream == "classify" else None,
        )
        for i, split in enumerate(["train"] * 100 + ["val"] * 10 + ["test"] * 10)
    )
    about = study.title, study.rank, ("m",), ("a", "b", "c"), "subject", cases
    downstream, corpus = (store.Dataset(Path("none") / name, *about) for name in ("a", "b"))
    own = study.pretraining_preset or study.corpus
    # Every split has the sizes of the data's own.
    dealt = (downstream,) * splits if splits > 1 else ()
    return StudyData(study, downstream, corpus if own else downstream, dealt=dealt)
