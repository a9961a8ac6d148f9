"""One job in a process of its own: trains, evaluates, writes `result.json`.

    python -m experiments.engine.worker FOLDER

Started by `experiments.engine.runs` in the output's folder, with FOLDER/job.json: a process per
job, so that nothing a run compiled or allocated stays behind, and its peak memory is its own. When
the other end of its standard input closes, i.e. when the process that started it is gone, it saves
a
checkpoint and ends.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import math
import os
import platform
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from experiments.engine.grid import load_config
from ssl3d import cli, evaluate
from ssl3d.atomic import atomic_write
from ssl3d.errors import RunError, UserError
from ssl3d.training import loop, run_log

JOB, RESULT = "job.json", "result.json"
STOPPED = 3  # the exit status of a job that was asked to end and goes on another time
# Seconds in which a predecessor whose parent died has saved and gone.
_PATIENCE = 120
# What file systems of clusters say that were mounted without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def main(arguments: Sequence[str]) -> int:
    """Runs the job of a folder. Raises `UserError` and `RunError`."""
    folder = Path(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads((folder / JOB).read_text())
    with (folder / ".lock").open("w") as lock:
        _wait_for(lock, folder)
        result = run(job, folder)
    if result is None:
        return STOPPED
    with atomic_write(folder / RESULT) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    # Of a finished run nothing goes on; over a whole grid they would fill the disk.
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    return 0


def run(job: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The row, the cases and the curve of a job; None if a signal ended it."""
    config = load_config(job["config"], job["argument"], _with_tuples(job["overrides"]))
    workdir = folder / "run"
    if not loop.train(config, workdir):
        return None
    lines = run_log.read_metrics(workdir)
    result: dict[str, Any] = {"row": dict(job["row"]), "cases": [], "curve": []}
    key = "kappa" if config.task.name == "classification" else "dice"
    if job["columns"]:
        result |= test(job, workdir)
        result["row"] = job["row"] | result["row"]
        result["curve"] = [
            [line["step"], _defined(line[key])] for line in lines if line["split"] == "val"
        ]
    else:
        result["row"] |= _last_validation(lines)
    result["row"] |= {
        "seconds": round(job["spent"] + time.time() - job["launched"], 1),
        "device_seconds": round(device_seconds(lines, config.batch_size), 2),
        "peak_memory_mb": round(peak_memory()),
        "machine": machine(),
    }
    if job["row"].get("probe"):
        speeds = [line["volumes_per_second"] for line in lines if line["split"] == "train"]
        # The first step compiles, and so does the first validation.
        result["row"] |= {
            "step_seconds": config.batch_size / float(np.median(speeds)),
            "validation_seconds": min(line["seconds"] for line in lines if line["split"] == "val"),
        }
    return result


def machine() -> str:
    """Processor, cores, accelerator if any, and jax."""
    processor = platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [x for x in information.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    device = jax.devices()[0]
    kind = "" if device.platform == "cpu" else f", {jax.device_count()} x {device.device_kind}"
    return f"{processor}, {os.cpu_count()} cores{kind}, jax {jax.__version__}"


def test(job: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """Scores of the run's last model, of each case too.

    Not of the best by validation: those labels would count to no method's amount, and where few
    were trained on, a checkpoint's luck on crops is more than methods differ by.
    """
    started = time.monotonic()
    output = workdir / "evaluation"
    options = [f"--workdir={workdir}", "--split=test", "--model=last", "--no-pictures"]
    options += [f"--data={job['overrides']['data.path']}", f"--output={output}"]
    options += [f"--source={job['source']}"] if job["source"] else []
    evaluate.main(options)
    cases, scores = read_evaluation(output, job["columns"])
    seconds = round(time.monotonic() - started, 1)
    return {"row": scores | {"evaluation_seconds": seconds}, "cases": cases}


def read_evaluation(
    folder: Path, columns: Sequence[Sequence[Any]]
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """The columns of each case and of the whole test set, of `ssl3d.evaluate`'s files.

    Args:
      columns: of (name, of), see `study.Column`.

    Returns:
      A row per case: `id`, `subject` and a score per column, or `grade` and `predicted`; and
      the scores of the test set, the original's under its name.

    Raises:
      UserError: a column that the data have not.
    """
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if summary["task"] == "classification":
        keys = ("id", "subject", "grade", "predicted")
        scores = {name: _defined(summary["scores"][of]["value"]) for name, of in columns}
        reference = summary["reference"]["reference_qw_kappa_kaggle"]
        scores["reference_kappa"] = _defined(reference)
        return [{key: row[key] for key in keys} for row in rows], scores
    classes = summary["classes"]
    by_case: dict[str, dict[str, Any]] = {}
    for row in rows:
        case = by_case.setdefault(row["id"], {"id": row["id"], "subject": row["subject"]})
        case[row["class"]] = float(row["dice"])
    cases = []
    for case in by_case.values():
        found = {"id": case["id"], "subject": case["subject"]}
        for name, of in columns:
            found[name] = _defined(_dice(case, of, classes))
        cases.append(found)
    scores = {
        name: _defined(_mean([case[name] for case in cases if case[name] is not None]))
        for name, _ in columns
    }
    scores["reference_dice"] = _defined(summary["reference"]["reference_dice"])
    return cases, scores


def _dice(case: dict[str, Any], of: str | int, classes: Sequence[str]) -> float:
    if of == "mean":
        return _mean([case[name] for name in classes[1:] if not math.isnan(case[name])])
    name = classes[of] if isinstance(of, int) and of < len(classes) else of
    if name not in case:
        raise UserError(f"no class or region {of!r} among {', '.join(classes)}: other data?")
    return case[name]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _defined(value: float | None) -> float | None:
    """JSON has no NaN. Five digits are more than a test set can tell."""
    return None if value is None or math.isnan(value) else round(value, 5)


def device_seconds(lines: Sequence[dict[str, Any]], batch_size: int) -> float:
    """Time for which training held the devices: without compilation and validation.

    Waits for data count. They are measured on the host, while the device may well be computing.
    """
    total, before = 0.0, 0
    for line in lines:
        if line["split"] == "train" and line["volumes_per_second"] > 0:
            volumes = (line["step"] - before) * batch_size
            total += volumes / line["volumes_per_second"]
            before = line["step"]
    return total


def peak_memory() -> float:
    """The most memory in MB that an accelerator has held, or without one this process."""
    found = [device.memory_stats() for device in jax.local_devices()]
    peaks = [about["peak_bytes_in_use"] for about in found if about]  # a CPU tells nothing
    if peaks:
        return max(peaks) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: it counts what the parent held when it forked.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _last_validation(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [line for line in lines if line["split"] == "val"]
    chosen: dict[str, Any] = {}
    for name, line in (("untrained", values[0]), ("trained", values[-1])):
        score = line.get("accuracy", line.get("dice"))
        chosen |= {f"{name}_score": score, f"{name}_loss": line["loss"]}
    return chosen | {"chance": values[-1].get("chance")}


def _with_tuples(overrides: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where configs have tuples."""

    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, list) else value

    return {key: convert(value) for key, value in overrides.items()}


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock a thread that waits here would hold when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for(lock: TextIO, folder: Path) -> None:
    """Two processes never write one run: one whose parent was killed may still be saving."""
    for _ in range(_PATIENCE):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{folder}: no locks on this file system; the claims have to do", flush=True)
            return
        else:
            return
    raise RunError(f"{folder}: another process is at work here; end it, or wait for it")


if __name__ == "__main__":
    cli.run(main)
