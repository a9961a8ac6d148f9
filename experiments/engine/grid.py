"""The grid of a study: its cells, the runs behind them, and the config of each run."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

import ssl3d
from ssl3d import bounds
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.experiments.engine.study import (
    DOUBLES,
    METHODS,
    Column,
    Settings,
    StudyData,
    label_fraction,
)
from ssl3d.training.cases import choose_cases
from ssl3d.training.checkpoint import NEUTRAL

ROOT = Path(ssl3d.__file__).parents[1]  # of the checkout
PRETRAINING, CELLS = "pretraining", "cells"
PRETRAINING_VALIDATIONS = 5
# Keys outside a run's hash. The pretraining enters it by its own hash, not by its folder, and the
# tested model is the last one, however the best is selected.
_UNHASHED = (*NEUTRAL, "name", "init.encoder", "task.select_by")
_LENGTHS = ("steps", "optimizer.warmup_steps", "transfer.warmup_steps")  # scaled by a budget


class Size(NamedTuple):
    """The extent of a grid."""

    methods: tuple[str, ...]
    labels: tuple[str, ...]
    repetitions: int
    modes: tuple[str, ...]  # of the methods that have no mode of their own
    first_repetition: int = 1


class Cell(NamedTuple):
    """One downstream run of the grid; `repetition` counts from the study's first."""

    method: str
    mode: str
    labels: str
    repetition: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run: a pretraining, or a cell with its evaluation."""

    name: str  # its folder within the output; ends in the hash of its config
    config: str  # file of configs/
    argument: str  # what follows the colon
    overrides: Settings
    row: dict[str, Any]  # the part of its result that is known in advance
    needs: "Job | None" = None  # the pretraining it starts from
    columns: tuple[Column, ...] = ()  # scores of its evaluation; none for a pretraining
    source: str = ""  # as in `StudyData`

    @property
    def command(self) -> str:
        """The same training as a command, for the output's folder."""
        config = f"--config={self.config}:{self.argument}".removesuffix(":")
        options = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return " ".join(["python -m ssl3d.main", f"--workdir={self.name}/run", config, *options])


def cells(size: Size) -> tuple[Cell, ...]:
    """All cells, one repetition after the other: every leading part compares all methods."""
    first = size.first_repetition
    return tuple(
        Cell(method, mode, amount, repetition)
        for repetition in range(first, first + size.repetitions)
        for amount in size.labels
        for method in size.methods
        for mode in ([METHODS[method].mode] if METHODS[method].mode else size.modes)
    )


def jobs(data: StudyData, grid: Iterable[Cell]) -> tuple[Job, ...]:
    """The runs of the cells, in order. Raises `UserError` where the data do not allow one."""
    pretraining = functools.cache(lambda method: pretraining_job(data, method))
    return tuple(cell_job(data, cell, pretraining(cell.method)) for cell in grid)


def pretraining_job(data: StudyData, method: str) -> Job | None:
    """The pretraining of a method; None for a method without one."""
    study, task = data.study, METHODS[method].task
    if not task:
        return None
    elsewhere, supervised = data.elsewhere, method == "supervised"
    transductive = data.transductive and not supervised  # whose labels are of training cases
    splits = ("train",) if supervised else ("train", "unlabelled")
    settings = {
        "data.path": str(data.corpus.path.resolve()),
        **study.pretraining,
        **study.pretraining_of.get(method, {}),
        "data.train_splits": (*splits, "val", "test") if transductive else splits,
        **({"data.phantom.kind": ""} if elsewhere else {}),
    }
    preset = (study.pretraining_preset if elsewhere else "") or study.preset
    config, settings = _resolve(data, method, task, preset, settings, PRETRAINING_VALIDATIONS)
    cases, _ = choose_cases(config, data.corpus)
    own = _config_hash(config, fingerprint(data.corpus))
    row = {
        "pretraining": f"{method}-{own}",
        "method": method,
        "steps": config.steps,
        "cases": len(cases),
        "cases_hash": case_hash(cases),
        "dataset": data.corpus.name,
        "transductive": transductive,
        "config_hash": own,
        "draws": pipeline.DRAW_VERSION,
        "code": code_version(),
    }
    return Job(f"{PRETRAINING}/{method}-{own}", task, preset, settings, row)


def cell_job(data: StudyData, cell: Cell, needs: Job | None) -> Job:
    """The downstream run of a cell, from the pretraining that it needs."""
    study, subjects = data.study, data.subjects
    rank = METHODS[cell.method].rank or study.rank
    file = f"{study.downstream}{rank}d"
    settings = {
        "data.path": str(data.dataset.path.resolve()),
        **study.finetuning,
        **study.finetuning_with(cell.labels, subjects),
        **(study.finetuning_slices if rank < study.rank else {}),
        "seed": cell.repetition,
        "data.label_seed": cell.repetition,
        "data.label_fraction": label_fraction(cell.labels, subjects),
        "transfer.mode": cell.mode,
        # Relative: the output may be moved, or have another path on another host.
        "init.encoder": f"{needs.name}/run" if needs else "",
    }
    config, settings = _resolve(data, cell.method, file, study.preset, settings, study.validations)
    train, validation = choose_cases(config, data.dataset)
    test = data.labelled("test")
    if not test:
        raise UserError(f"{data.dataset.path}: no labelled test cases; prepare with --test=0.2")
    before = needs.row if needs else {}
    hashed = fingerprint(data.dataset), before.get("config_hash", ""), bool(data.source)
    own = _config_hash(config, *hashed)
    name = "-".join((cell.method, cell.mode, cell.labels.replace("%", "pc"), f"r{cell.repetition}"))
    row = {
        "cell": f"{name}-{own}",
        **cell._asdict(),
        "training_cases": len(train),
        "seed": config.seed,
        "label_seed": config.data.label_seed,
        "steps": config.steps,
        "pretraining": before.get("pretraining", ""),
        "pretraining_steps": before.get("steps", 0),
        "transductive": before.get("transductive", False),
        "config_hash": own,
        "train_hash": case_hash(train),
        "val_hash": case_hash(validation),
        "test_hash": case_hash(test),
        "pretraining_hash": before.get("cases_hash", ""),
        "draws": pipeline.DRAW_VERSION,
        "code": code_version(),
    }
    about = file, study.preset, settings, row, needs, study.columns, data.source
    return Job(f"{CELLS}/{name}-{own}", *about)


def load_config(file: str, argument: str, overrides: Settings) -> Any:
    """The config of configs/FILE.py with overrides and what follows from them, or `UserError`."""
    config = importlib.import_module(f"ssl3d.configs.{file}").get_config(argument)
    try:
        config.update_from_flattened_dict(dict(overrides))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"configs/{file}.py: {' '.join(str(error).split())}") from None
    bounds.derive(config)
    return config


def _resolve(
    data: StudyData, method: str, file: str, argument: str, settings: Settings, validations: int
) -> tuple[Any, dict[str, Any]]:
    """The config and all its overrides, with the numbers of steps at the scale of `data`.

    The validations are within the usual steps: a longer run validates at the same interval.
    """
    encoder = {f"encoder.{key}": value for key, value in data.study.encoder.items()}
    settings = {**data.study.data, **encoder, **settings}
    config = load_config(file, argument, settings)
    scaled = {key: round(n * data.scale) for key, n in _flat(config).items() if key in _LENGTHS}
    steps = max(scaled["steps"], 1)
    scaled["steps"] = max(round(steps * _times(data, method, config.steps)), 1)
    scaled["validate_every"] = max(steps // validations, 1)
    settings |= scaled
    return load_config(file, argument, settings), settings


def _times(data: StudyData, method: str, steps: int) -> float:
    """The length of a method's run in multiples of the usual steps."""
    if method in DOUBLES.values():
        return 2.0
    if method != "scratch-long":
        return 1.0
    study = data.study
    # The longest pretraining of the study, even if this call was narrowed to other methods.
    pretraining = [
        {**study.pretraining, **study.pretraining_of.get(name, {})}.get("steps")
        or load_config(METHODS[name].task, study.preset, {}).steps
        for name in study.methods
        if METHODS[name].task and METHODS[name].rank == study.rank and name != "supervised"
    ]
    return 1 + max(pretraining, default=0) / steps


def _config_hash(config: Any, *more: object) -> str:
    kept = {key: value for key, value in _flat(config).items() if key not in _UNHASHED}
    return digest(json.dumps([kept, *more], sort_keys=True))


def _flat(config: Any) -> dict[str, Any]:
    return flatten_dict(json.loads(config.to_json()), sep=".")


def case_hash(cases: Iterable[store.Case]) -> str:
    """A short hash of the case ids, independent of their order."""
    return digest("\n".join(sorted(case.id for case in cases)))


def fingerprint(dataset: store.Dataset) -> str:
    """A short hash of the manifest: cases, subjects, splits, order, contents."""
    cases = [(c.id, c.subject, c.split, c.order, c.extra.get("content", "")) for c in dataset.cases]
    return digest(json.dumps([dataset.name, dataset.extra.get("seed"), cases]))


def digest(text: str) -> str:
    """Twelve digits of the SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def code_version() -> str:
    """The package's version and, in a checkout, the commit."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    if (ROOT / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
            return f"{ssl3d.__version__}+{commit.strip()}"
    return ssl3d.__version__
