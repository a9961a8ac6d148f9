"""A study of seconds, with a stand-in for its training; also as a command.

python -m tests.support.small_study --data=DIR --output=DIR
"""

import csv
import dataclasses
import importlib
import os
import subprocess
import sys
from collections import Counter

from ssl3d import cluster
from ssl3d.experiments import command
from ssl3d.experiments.engine import runs
from ssl3d.experiments.engine.grid import ROOT, versions
from ssl3d.experiments.engine.study import Column
from ssl3d.experiments.hippocampus import STUDY
from tests.support import stand_in

# By the file of experiments/ that holds it.
STUDIES = {
    name: importlib.import_module(f"ssl3d.experiments.{name}").STUDY
    for name in (
        "abdomen",
        "abdomen_pilot",
        "brats",
        "fundus_pilot",
        "hippocampus",
        "hippocampus_levels",
        "hippocampus_levels_splits",
        "hippocampus_slices",
        "hippocampus_splits",
        "pancreas",
        "phantom",
        "retina",
    )
}


class Finished:
    """A process that has ended."""

    def __init__(self, status):
        self.status = status

    def wait(self):
        return self.status


def run_here(output, name, log):
    """The stand-in without a process, which would take most of the time."""
    try:
        stand_in.train(output, name, **versions())
    except SystemExit as end:
        log.write(f"{end}\n")
        return Finished(1)
    return Finished(0)


def run_apart(output, name, log):
    """The stand-in as a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.stand_in", name],
        cwd=output,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def start(output, data, *options, **environment):
    """The command of the tiny study in a process of its own."""
    folders = [f"--data={data}", f"--output={output}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.small_study", *folders, *options],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(output, file="results.csv"):
    """A table of results."""
    with (output / file).open(newline="") as text:
        return list(csv.DictReader(text))


def done(output):
    """How often the stand-in ran each job."""
    file = output / "done.txt"
    return Counter(file.read_text().split()) if file.exists() else Counter()


def use_stand_in(patch, launch=run_here):
    """Replaces the training of every job."""
    patch(runs, "launch", launch)
    patch(cluster, "count_accelerators", lambda: 0)


def dask_setup(worker):
    """Of a Dask worker that preloads this module."""
    use_stand_in(setattr, run_apart)


def tiny(**changes):
    """The hippocampus study on the tests' shared volumes, in seconds."""
    study = dataclasses.replace(
        STUDY,
        classes=(),
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
    command.run(tiny())
