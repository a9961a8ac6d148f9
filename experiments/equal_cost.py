"""Every proxy task for the same wall time: throughput, memory, and a linear probe.

python -m experiments.equal_cost --preset=hippocampus --data=DIR --output=DIR [--minutes=5]

A few steps of each task's shipped config are timed. Then the task is trained from scratch for so
many minutes, start, compilation and validation included, and probed on the test split with a share
of the labels. Run the command again to continue; the table is equal_cost.csv in the output.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.engine.grid import ROOT
from ssl3d import cli, tasks
from ssl3d.errors import RunError, UserError
from ssl3d.training import run_log

_TIMED = 12  # steps, of which the second half is timed
_PROXY = [name for name in tasks.TASKS if not hasattr(tasks.module_of(name), "NEEDS")]
_KEY = ["task", "rank", "preset", "minutes"]


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError` and `RunError`."""
    parser = cli.Parser(prog="python -m experiments.equal_cost", description=__doc__)
    add = parser.add_argument
    help_ = "prepared data with labels, or a phantom's folder"
    add("--data", type=cli.path, required=True, help=help_)
    add("--output", type=cli.path, required=True)
    add("--preset", default="phantom", help="of the configs (default: %(default)s)")
    add("--rank", type=int, choices=(2, 3), default=3, help="default: %(default)s")
    add("--minutes", type=float, default=5.0, help="per task (default: %(default)s)")
    add("--tasks", type=lambda text: text.split(","), default=_PROXY, help=",".join(_PROXY))
    add("--probe", default="segment", choices=("segment", "classify"), help="default: %(default)s")
    add("--labels", type=float, default=0.25, help="share for the probe (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in options.tasks:
        if name not in _PROXY:
            raise UserError(f"--tasks: no proxy task {name!r}; choose of {', '.join(_PROXY)}")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "equal_cost.csv"
    rows: list[Any] = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in options.tasks:
        key = dict(zip(_KEY, (name, options.rank, options.preset, options.minutes), strict=True))
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | train_and_probe(name, options))
            pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"))


def train_and_probe(name: str, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one task, from processes of its own."""
    config = f"{name}{options.rank}d"
    run, trial = options.output / config, options.output / f"{config}-timed"
    brief = {"log_every": _TIMED // 2, "optimizer.warmup_steps": 1}
    spent, _ = _train(config, options, trial, {"steps": _TIMED, **brief})
    batch = json.loads((trial / "config.json").read_text())["batch_size"]
    step = batch / _throughput(trial)
    start = spent - _TIMED * step
    steps = int((60 * options.minutes - start) / step)
    if steps < 2 * _TIMED:
        least = (start + 2 * _TIMED * step) / 60
        raise UserError(f"--minutes={options.minutes:g}: {name} needs {least:.1f} or more here")
    spent, memory = _train(config, options, run, {"steps": steps})
    scores = run / "probe.json"
    probe = f"{options.probe}{options.rank}d"
    own = [f"--config.init.encoder={run}", f"--config.data.label_fraction={options.labels}"]
    _run("probe", probe, options, [*own, f"--output={scores}"], run.with_suffix(".log"))
    found = json.loads(scores.read_text())["rows"]
    first = [next(iter(row["scores"].values())) for row in found]
    return {
        "steps": steps,
        "seconds": spent,
        "start": start,
        "volumes_per_second": _throughput(run),
        "peak_mb": memory,
        **{
            row["row"].replace(" ", "_"): score["value"]
            for row, score in zip(found, first, strict=True)
        },
        "low": first[0]["low"],
        "high": first[0]["high"],
    }


def _train(
    config: str, options: argparse.Namespace, run: Path, settings: dict[str, int]
) -> tuple[float, float]:
    """Trains anew, validates at both ends only: -> seconds and megabytes of the process."""
    shutil.rmtree(run, ignore_errors=True)  # of an interrupted measurement
    at_the_end = dict.fromkeys(("validate_every", "checkpoint_every"), settings["steps"])
    settings = {"probe_every": 0, **at_the_end, **settings}
    own = [f"--config.{key}={value}" for key, value in settings.items()]
    return _run("main", config, options, [*own, f"--workdir={run}"], run.with_suffix(".log"))


def _run(
    command: str, config: str, options: argparse.Namespace, own: list[str], log: Path
) -> tuple[float, float]:
    print(f"{command} {config}", flush=True)
    file = f"{ROOT}/configs/{config}.py:{options.preset}"
    own = [f"--config={file}", f"--config.data.path={options.data.resolve()}", *own]
    started = time.monotonic()
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"ssl3d.{command}", *own],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # Of this process alone; `resource` has the largest of all children.
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RunError(f"{command} {config} failed; see {log}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return time.monotonic() - started, usage.ru_maxrss * unit / 1e6


def _throughput(run: Path) -> float:
    """Volumes per second of the latter half of a run."""
    lines = [line for line in run_log.read_metrics(run) if line["split"] == "train"]
    rates = [line["volumes_per_second"] for line in lines[len(lines) // 2 :]]
    return len(rates) / sum(1 / rate for rate in rates)


if __name__ == "__main__":
    cli.run(main)
