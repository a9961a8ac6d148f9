"""Proxy tasks for the same wall time: trained, probed, and a row for each in equal_cost.csv."""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pandas as pd

from ssl3d import cluster, tasks
from ssl3d.errors import RunError, UserError
from ssl3d.experiments.engine import runs
from ssl3d.experiments.engine.grid import ROOT, Job

_TIMED = 12  # steps
_KEY = ["task", "rank", "preset", "minutes"]


def compare(options: argparse.Namespace) -> pd.DataFrame:
    """The table of the tasks, which grows with each of them in `options.output`.

    Raises:
      UserError: a name in `options.tasks` is no proxy task's, or a task needs more minutes.
      RunError: a process failed.
    """
    proxies = tasks.proxies()
    names = options.tasks or proxies
    for name in names:
        if name not in proxies:
            raise UserError(f"--tasks: no proxy task {name!r}; choose of {', '.join(proxies)}")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "equal_cost.csv"
    rows: list[Any] = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in names:
        key = dict(zip(_KEY, (name, options.rank, options.preset, options.minutes), strict=True))
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | train_and_probe(name, options))
            pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
    return pd.DataFrame(rows)


def train_and_probe(name: str, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one task, from processes of its own."""
    config = f"{name}{options.rank}d"
    brief = {"log_every": 1, "optimizer.warmup_steps": 1}
    trial = _train(f"{config}-timed", config, options, {"steps": _TIMED, **brief})
    start = trial["seconds"] - _TIMED * trial["step_seconds"]
    steps = int((60 * options.minutes - start) / trial["step_seconds"])
    if steps < 2 * _TIMED:
        least = (start + 2 * _TIMED * trial["step_seconds"]) / 60
        raise UserError(f"--minutes={options.minutes:g}: {name} needs {least:.1f} or more here")
    trained = _train(config, config, options, {"steps": steps})
    run = options.output / config / "run"
    batch = json.loads((run / "config.json").read_text())["batch_size"]
    scores, probe = run / "probe.json", f"{options.probe}{options.rank}d:{options.preset}"
    own = [f"--config.init.encoder={run}", f"--config.data.label_fraction={options.labels}"]
    own += [f"--config.data.path={options.data.resolve()}", f"--output={scores}"]
    print(f"probe {config}", flush=True)
    command = [sys.executable, "-m", "ssl3d.probe", f"--config={probe}", *own]
    log = options.output / config / "probe.txt"
    with log.open("w") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if subprocess.run(command, env=environment, stdout=output, stderr=output).returncode:
            raise RunError(f"probe {config} failed; see {log}")
    rows = json.loads(scores.read_text())["rows"]
    found = {row["row"].replace(" ", "_"): next(iter(row["scores"].values())) for row in rows}
    pretrained = next(iter(found.values()))
    return {
        "steps": steps,
        "seconds": trained["seconds"],
        "start": start,
        "volumes_per_second": batch / trained["step_seconds"],
        "peak_mb": trained["peak_memory_mb"],
        **{name: score["value"] for name, score in found.items()},
        "low": pretrained["low"],
        "high": pretrained["high"],
    }


def _train(
    folder: str, config: str, options: argparse.Namespace, settings: dict[str, int]
) -> dict[str, float]:
    """Trains anew, validates at both ends only: the row of its result, see `worker.run`."""
    shutil.rmtree(options.output / folder, ignore_errors=True)  # of an interrupted measurement
    at_the_end = dict.fromkeys(("validate_every", "checkpoint_every"), settings["steps"])
    overrides = {"data.path": str(options.data.resolve()), **at_the_end, **settings}
    job = Job(folder, config, options.preset, overrides, {"probe": True})
    runs.work(options.output.resolve(), [job], functools.partial(cluster.connect, "", 1))
    return json.loads((options.output / folder / runs.RESULT).read_text())["row"]
