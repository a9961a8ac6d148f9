"""A study of seconds, and a stand-in for the training that takes none.

Also a command, as two processes that share a folder need it: python small_study.py --data=...
"""

import contextlib
import dataclasses
import importlib
import subprocess
import sys
from types import SimpleNamespace

from experiments.engine import protocol, runs
from experiments.engine.study import Column
from experiments.hippocampus import STUDY
from ssl3d import cli

# By the file of experiments/ that holds it.
STUDIES = {
    name: importlib.import_module(f"experiments.{name}").STUDY
    for name in (
        "brats",
        "hippocampus",
        "hippocampus_levels",
        "hippocampus_slices",
        "pancreas",
        "phantom",
        "retina",
    )
}

# Reads the job, writes a made-up result and a line of its name. Its scores: a little better with
# more labels, better still when pretrained; different for each case and repetition.
STAND_IN = """
if "sys" not in globals():
    import sys
import json, os, pathlib, time, zlib
folder = pathlib.Path(sys.argv[1])
time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
job = json.loads((folder / "job.json").read_text())
with open("done.txt", "a") as file:
    file.write(str(folder) + "\\n")
row = job["row"] | {"seconds": job["spent"] + 1, "device_seconds": 0.5, "peak_memory_mb": 100,
                    "machine": "a stand-in"}
result = {"row": row, "cases": [], "curve": []}
if job["columns"]:
    level = 0.5 + row["training_cases"] / 100 + (0.1 if row["pretraining"] else 0)
    for number in range(int(os.environ.get("STAND_IN_CASES", "12"))):
        noise = zlib.crc32(f"{number} {row['repetition']}".encode()) % 1000 / 1e5
        own = zlib.crc32(f"{number} {row['cell']}".encode()) % 1000 / 1e6
        result["cases"].append({"id": f"c{number:02d}", "subject": f"s{number:02d}"}
                               | {name: level + noise + own for name, _ in job["columns"]})
    mean = sum(case[job["columns"][0][0]] for case in result["cases"]) / len(result["cases"])
    for name, _ in job["columns"]:
        row |= {name: round(mean, 5)}
    row |= {"evaluation_seconds": 0.1, "reference_dice": 0.9}
    start = 0.2 if row["pretraining"] else 0
    result["curve"] = [[step, mean * min(1, step / row["steps"] + start)]
                       for step in range(0, row["steps"] + 1, 2)]
else:
    row |= {"trained_score": 0.9, "untrained_score": 0.1, "chance": 0.04}
if row.get("probe"):
    row |= {"step_seconds": 0.01, "validation_seconds": 0.01}
if os.environ.get("STAND_IN_FAILS") and os.environ["STAND_IN_FAILS"] in str(folder):
    sys.exit("no luck")
(folder / "result.partial").write_text(json.dumps(result))
(folder / "result.partial").rename(folder / "result.json")
"""


class Finished:
    """What is left of a process that has ended."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode

    def terminate(self):
        pass


def run_here(output, job, log):
    """The stand-in without a process, which would take most of the time."""
    with contextlib.chdir(output):
        try:
            exec(STAND_IN, {"sys": SimpleNamespace(argv=["", job.name], exit=sys.exit)})
        except SystemExit as end:
            log.write(f"{end}\n")
            return Finished(1)
    return Finished(0)


def run_apart(output, job, log):
    """The stand-in as a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", STAND_IN, job.name],
        cwd=output,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def use_stand_in(patch, launch=run_here):
    """Makes every job a call of `STAND_IN`."""
    patch(runs, "launch", launch)
    patch(runs, "LOOK", 0.1)


def tiny(**changes):
    """The hippocampus study on the tests' shared volumes, in seconds."""
    study = dataclasses.replace(
        STUDY,
        encoder={"width": 4, "depth": 2},
        labels=("2", "all"),
        repetitions=2,
        columns=(Column("dice", "mean"),),
        methods=("scratch", "scratch-long", "untrained-frozen", "rpl3d", "rotation3d", "rpl2d"),
        validations=3,
        data={"data.threads": 1},
        pretraining={
            "steps": 4,
            "data.crop": (24, 24, 24),
            "batch_size": 4,
            "optimizer.warmup_steps": 1,
            "validation.repeats": 1,
        },
        pretraining_of={
            name: {"data.crop": (24, 24)} for name in ("rpl2d", "rotation2d", "jigsaw2d")
        },
        finetuning={
            "steps": 6,
            "data.crop": (16, 16, 16),
            "batch_size": 2,
            "optimizer.warmup_steps": 1,
            "transfer.warmup_steps": 1,
        },
        finetuning_of={},
        finetuning_slices={"data.crop": (16, 16), "batch_size": 4},
        notes=(),
    )
    return dataclasses.replace(study, **changes)


if __name__ == "__main__":
    use_stand_in(setattr, run_apart)
    cli.run(lambda arguments: protocol.main(tiny(), arguments))
