"""One job in a process of its own: trains, evaluates, writes `result.json`.

    python -m ssl3d.experiments.engine.worker FOLDER

Started by `experiments.engine.runs` in the output's folder, with FOLDER/job.json. A process per job
frees all compiled code and memory, and its peak memory is that of the job. It saves a checkpoint
and ends when its standard input closes, i.e. when the process that started it is gone.
"""

import datetime
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd

from ssl3d import cli, documents, evaluate, hardware
from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.errors import DivergedError, UserError
from ssl3d.experiments.engine.grid import load_config, versions
from ssl3d.experiments.engine.runs import JOB, RESULT, STOPPED
from ssl3d.experiments.engine.study import as_tuples
from ssl3d.training import loop, run_log
from ssl3d.training.problem import open_problem

AS_IN_BRATS = " as in BraTS"
# Validation scores defined as in Figures 5 and 6 of the paper.
LIKE = {"reference_soft_dice", "reference_bit_accuracy"}


def main(arguments: Sequence[str]) -> int:
    """Runs the job of a folder. Raises `UserError` and `RunError`."""
    folder = Path(arguments[0])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Another process on the folder, whose Dask worker was killed, may still be saving or testing.
    with filelock.FileLock(folder / ".lock"):
        if (folder / RESULT).exists():
            return 0
        result = run(documents.read_object(folder / JOB, "start the study again"), folder)
    if result is None:
        return STOPPED
    with atomic_write(folder / RESULT) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    # A finished run needs none; those of a whole grid would fill the disk.
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    return 0


def run(job: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The row, the cases and the curve of a job; None if a signal ended it."""
    config = load_config(job["config"], job["argument"], as_tuples(job["overrides"]))
    if "probe_every" in config:
        config.probe_every = 0  # the test scores the encoder, and a run's time is its method's
    workdir, diverged = folder / "run", without_encoder(job)
    try:
        if not diverged and not loop.train(config, workdir):
            return None
    except DivergedError as error:
        # Cases at fault from the start, or a run that is timed.
        if job["row"].get("probe") or not run_log.read_metrics(workdir):
            raise
        diverged = str(error).partition(":")[0]
    lines = run_log.read_metrics(workdir)
    training = [line for line in lines if line["split"] == "train"]
    validation = [line for line in lines if line["split"] == "val"]
    task: Any = open_problem(config)[0].task if lines else None
    result: dict[str, Any] = {"row": job["row"] | versions(), "cases": [], "curve": []}
    row = result["row"]
    row["diverged"] = diverged
    if job["columns"]:
        result["curve"] = [[line["step"], _rounded(line[task.best_by])] for line in validation]
        result["cases"], scores = diverged_scores(job) if diverged else test(job, workdir)
        row |= scores
        row |= {key: _rounded(line[key]) for line in validation[-1:] for key in line.keys() & LIKE}
    else:
        ends = {"untrained": validation[0]} | ({} if diverged else {"trained": validation[-1]})
        for name, line in ends.items():
            row |= {f"{name}_score": line[task.headline], f"{name}_loss": line["loss"]}
        row["chance"] = validation[-1].get("chance")
    row |= {
        "seconds": round(job["spent"] + time.time() - job["launched"], 1),
        "device_seconds": round(device_seconds(training, config.batch_size), 2),
        "peak_memory_mb": round(hardware.peak_memory()),
        "machine": hardware.machine(),
        "finished": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if row.get("probe"):
        # The first step compiles, and so does the first validation.
        speed = float(np.median([line["volumes_per_second"] for line in training]))
        row["step_seconds"] = config.batch_size / speed
        row["validation_seconds"] = min(line["seconds"] for line in validation)
    return result


def without_encoder(job: dict[str, Any]) -> str:
    """Where the pretraining that a cell needs diverged, e.g. "pretraining, step 12"; else ""."""
    if not job.get("needs") or not (result := Path(job["needs"]) / RESULT).exists():
        return ""
    remedy = "remove it to pretrain again"
    with documents.fields(result, remedy):
        where = documents.read_object(result, remedy)["row"].get("diverged")
    return f"pretraining, {where}" if where else ""


def test(job: dict[str, Any], workdir: Path) -> tuple[list[Any], dict[str, Any]]:
    """Scores of the run's last model, per case and on the whole test set.

    Not of the best model by validation: those labels are no part of any method's amount, and with
    few training cases the luck of a checkpoint on crops exceeds the differences between methods.
    """
    started, output = time.monotonic(), workdir / "evaluation"
    options = [f"--workdir={workdir}", "--split=test", "--model=last"]
    options += ["--no-pictures"] * (not job.get("pictures"))
    options += [f"--data={job['overrides']['data.path']}", f"--output={output}"]
    evaluate.main(options + [f"--source={job['source']}"] * bool(job["source"]))
    cases, scores = read_evaluation(output, job["columns"])
    return cases, scores | {"evaluation_seconds": round(time.monotonic() - started, 1)}


def diverged_scores(job: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Those of a network that knows nothing: a Dice of 0, or the lowest grade for all, kappa 0.

    A cell left out would make the methods that diverge look better than they are.
    """
    dataset, of = store.read(job["overrides"]["data.path"]), job["columns"][0][1]
    tested = dataset.split("test")
    if of == "kappa":
        cases = [
            {"id": c.id, "subject": c.subject, "grade": str(c.grade), "predicted": "0"}
            for c in tested
            if c.grade is not None
        ]
        return cases, {"kappa": 0.0}
    nothing = {str(name): 0.0 for name, _ in job["columns"]}
    labelled = [case for case in tested if case.labelled]
    return [{"id": c.id, "subject": c.subject} | nothing for c in labelled], dict(nothing)


def read_evaluation(
    folder: Path, columns: Sequence[Sequence[Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """The columns (see `study.Column`) in the files of `ssl3d.evaluate`: per case, and of all.

    Cases have `id`, `subject` and their columns, or `grade` and `predicted`; the whole test set
    also has the score as the original code defines it. Raises `UserError` for a missing column.
    """
    summary = documents.read_object(folder / "summary.json", "run it again")
    rows = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    if "predicted" in rows:
        scores = {name: _rounded(summary["scores"][of]["value"]) for name, of in columns}
        scores["reference_kappa"] = _rounded(summary["reference"]["reference_qw_kappa_kaggle"])
        return rows[["id", "subject", "grade", "predicted"]].to_dict("records"), scores
    classes, found = summary["classes"], {}
    rows = rows.set_index(["id", "subject", "class"])
    dice = rows["dice"].astype(float).unstack(sort=False)
    for column, of in columns:
        if str(of).endswith(AS_IN_BRATS):
            name = str(of).removesuffix(AS_IN_BRATS)
            found[column] = as_in_brats(rows[rows.index.get_level_values("class") == name])
            continue
        name = classes[of] if isinstance(of, int) and of < len(classes) else of
        if of == "mean":
            found[column] = dice[classes[1:]].mean(axis=1)
        elif name in dice:
            found[column] = dice[name]
        else:
            raise UserError(f"no class or region {of!r} among {', '.join(classes)}: other data?")
    table = pd.DataFrame(found).map(_rounded).astype(object)
    cases = table.where(table.notna(), None).reset_index().to_dict("records")
    scores = {str(column): _rounded(table[column].mean()) for column in table}
    return cases, scores | {"reference_dice": _rounded(summary["reference"]["reference_dice"])}


def as_in_brats(rows: pd.DataFrame) -> pd.Series:
    """Dice by case as the BraTS challenge scores it: 1 where neither map has the region, else 0.

    `rows` of cases.csv are of one class; where the truth has the region, nothing changes.
    """
    rows = rows.droplevel("class")
    empty = rows["predicted_volume"].astype(float) == 0
    absent = rows["dice"].astype(float).isna()
    return rows["dice"].astype(float).where(~absent, empty.astype(float))


def _rounded(value: float | None) -> float | None:
    """JSON has no NaN. A test set cannot resolve more than five digits."""
    return None if value is None or math.isnan(value) else round(value, 5)


def device_seconds(training: Iterable[dict[str, Any]], batch_size: int) -> float:
    """Seconds on the devices, by lines of the training metrics: no compilation, no validation.

    Waiting for data counts: the host measures it, and the device may be computing meanwhile.
    """
    total, before = 0.0, 0
    for line in training:
        if line["volumes_per_second"] > 0:
            total += (line["step"] - before) * batch_size / line["volumes_per_second"]
            before = line["step"]
    return total


def _end_with_parent() -> None:
    # Not sys.stdin: this thread would hold its lock at the interpreter's exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    cli.run(main)
