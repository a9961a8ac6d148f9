"""The grid of a study: its cells, the runs behind them, and the config of each run."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ssl3d
from ssl3d import bounds, documents, tasks
from ssl3d.atomic import atomic_write
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
from ssl3d.training import cases as training_cases
from ssl3d.training.checkpoint import NEUTRAL

ROOT = Path(ssl3d.__file__).parents[1]  # of the checkout
PRETRAINING, CELLS = "pretraining", "cells"
PRETRAINING_VALIDATIONS = 5
# Keys outside a run's hash. The pretraining enters it by its own hash, not by its folder, and the
# tested model is the last one, however the best is selected.
_UNHASHED = (*NEUTRAL, "name", "init.encoder", "task.select_by")
KEYS = "keys.json"
# What the hash has of the settings of a phantom where there is none: as there were at first.
_NO_PHANTOM = {"train": 96, "val": 32, "test": 32, "seed": 0}
# The scores of the study, beside the config files of `KEYS`.
_COLUMNS = "columns"


class Size(NamedTuple):
    """The extent of a grid."""

    methods: tuple[str, ...]
    labels: tuple[str, ...]
    repetitions: int
    modes: tuple[str, ...]  # of the methods that have no mode of their own
    first_repetition: int = 1
    encoders: int = 1
    splits: int = 1
    arms: tuple[str, ...] = ("",)


class Cell(NamedTuple):
    """One downstream run of the grid; `repetition` counts from the study's first."""

    method: str
    mode: str
    labels: str
    repetition: int
    encoder: int = 0  # number and seed of its pretraining; 0 for a method without one
    split: int = 0  # of several; 0: the data's own
    arm: str = ""


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
    pictures: bool = False  # whether its evaluation draws the median case

    @property
    def command(self) -> str:
        """The same training as a command, for the output's folder."""
        config = f"--config={self.config}:{self.argument}".removesuffix(":")
        options = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return " ".join(["python -m ssl3d.main", f"--workdir={self.name}/run", config, *options])


def cells(size: Size) -> tuple[Cell, ...]:
    """All cells, one repetition after the other: every leading part compares all methods.

    Encoders and splits are dealt to the repetitions in turn.
    """
    found = []
    for repetition in range(size.first_repetition, size.first_repetition + size.repetitions):
        encoder, split = dealt(size, repetition)
        found += [
            Cell(
                *(method, mode, amount, repetition),
                *(encoder if METHODS[method].task else 0, split, arm),
            )
            for amount in size.labels
            for arm in size.arms
            for method in size.methods
            for mode in ([METHODS[method].mode] if METHODS[method].mode else size.modes)
        ]
    return tuple(found)


def dealt(size: Size, repetition: int) -> tuple[int, int]:
    """The encoder and the split of a repetition; see `Cell`."""
    number = repetition - size.first_repetition
    return number % size.encoders + 1, number % size.splits + 1 if size.splits > 1 else 0


def jobs(data: StudyData, grid: Iterable[Cell]) -> tuple[Job, ...]:
    """The runs of the cells, in order. Raises `UserError` where the data do not allow one."""
    of = functools.cache(data.of)
    pretraining = functools.cache(lambda *about: pretraining_job(of(about[-1]), *about))
    # The splits are those of the downstream data: encoders of other data serve all of them.
    return tuple(
        cell_job(
            of(cell.split),
            cell,
            pretraining(cell.method, cell.encoder, 0 if data.elsewhere else cell.split),
        )
        for cell in grid
    )


def pretraining_job(data: StudyData, method: str, encoder: int = 1, split: int = 0) -> Job | None:
    """A pretraining of a method, of the seed `encoder`; None for a method without one.

    `data` are those of the split.
    """
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
        "seed": encoder,
        "data.train_splits": (*splits, "val", "test") if transductive else splits,
        **({"data.phantom.kind": ""} if elsewhere else {}),
    }
    preset = (study.pretraining_preset if elsewhere else "") or study.preset
    if supervised:
        task = f"{study.downstream}{study.rank}d"
    elif study.variant:
        preset += f",{study.variant}"
    config, settings = _resolve(data, method, task, preset, settings, PRETRAINING_VALIDATIONS)
    cases, _ = training_cases.choose_cases(config, data.corpus)
    own = config_hash(data, task, preset, config, _known(data, config, data.corpus))
    name = "-".join((method, f"e{encoder}", *([f"s{split}"] if split else []), own))
    row = {
        "pretraining": name,
        "method": method,
        "encoder": encoder,
        "split": split,
        "steps": config.steps,
        "cases": len(cases),
        "cases_hash": case_hash(cases),
        "dataset": data.corpus.name,
        "transductive": transductive,
        "config_hash": own,
    }
    return Job(f"{PRETRAINING}/{name}", task, preset, settings, row)


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
        **study.arms.get(cell.arm, {}),
        "seed": cell.repetition,
        "data.label_seed": cell.repetition,
        "data.label_fraction": label_fraction(cell.labels, subjects),
        "transfer.mode": cell.mode,
        # Relative: the output may be moved, or have another path on another host.
        "init.encoder": f"{needs.name}/run" if needs else "",
    }
    config, settings = _resolve(data, cell.method, file, study.preset, settings, study.validations)
    train, validation = training_cases.choose_cases(config, data.dataset)
    test = data.labelled("test")
    if not test:
        raise UserError(f"{data.dataset.path}: no labelled test cases; prepare with --test=0.2")
    before = needs.row if needs else {}
    hashed = _known(data, config, data.dataset), before.get("config_hash", ""), bool(data.source)
    own = config_hash(data, file, study.preset, config, *hashed, *_redefined(data))
    arm = re.sub("[^0-9A-Za-z.]+", "", cell.arm)
    about = cell.method, cell.mode, cell.labels.replace("%", "pc"), arm, f"r{cell.repetition}"
    name = "-".join(filter(None, about))
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
    }
    run = file, study.preset, settings, row, needs, study.columns, data.source
    return Job(f"{CELLS}/{name}-{own}", *run, cell.repetition == study.first_repetition)


def versions() -> dict[str, Any]:
    """What a run's row says of the code that ran it."""
    return {"draws": pipeline.DRAW_VERSION, "code": code_version()}


def load_config(file: str, argument: str, overrides: Settings) -> Any:
    """The config of configs/FILE.py with overrides and what follows from them, or `UserError`."""
    config = importlib.import_module(f"ssl3d.configs.{file}").get_config(argument)
    config.lock()  # no key that the config does not have
    try:
        config.update_from_flattened_dict(dict(overrides))
    except (KeyError, TypeError, ValueError) as error:
        reason, _, hint = " ".join(str(error).split()).partition(" Other fields present")
        hint = hint.partition("Did you mean ")[2]
        reason += f" Did you mean {hint}" if hint else ""
        raise UserError(f"configs/{file}.py: {reason}") from None
    config.unlock()
    bounds.derive(config)
    return config


def _resolve(
    data: StudyData, method: str, file: str, argument: str, settings: Settings, validations: int
) -> tuple[Any, dict[str, Any]]:
    """The config and all its overrides.

    The validations are within the usual steps: a longer run validates at the same interval.
    """
    encoder = {f"encoder.{key}": value for key, value in data.study.encoder.items()}
    settings = {**data.study.data, **encoder, **settings}
    steps = load_config(file, argument, settings).steps
    settings["steps"] = max(round(steps * _times(data, method, steps)), 1)
    settings["validate_every"] = max(steps // validations, 1)
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


def config_hash(data: StudyData, file: str, argument: str, config: Any, *more: object) -> str:
    """Identifies a run by all that decides its result.

    A key that its config file did not have when the study was begun counts only where it is not at
    its default: a new key, for something else, leaves finished runs as they are. So do other
    defaults of a phantom, where there is none.
    """
    known = data.keys.get(file)
    default = _flat(load_config(file, argument, {})) if known else {}
    kept = {
        key: value
        for key, value in _flat(config).items()
        if key not in _UNHASHED and (not known or key in known or value != default.get(key))
    }
    if not config.data.phantom.kind:
        shape = [64] * config.rank
        for key, value in {**_NO_PHANTOM, "shape": shape}.items():
            if (own := f"data.phantom.{key}") in kept:
                kept[own] = value
    return digest(json.dumps([kept, *more], sort_keys=True))


def _redefined(data: StudyData) -> tuple[list[str], ...]:
    """The study's columns, where some are not those that the output's runs have as scores."""
    columns = _columns(data.study.columns)
    known = data.keys.get(_COLUMNS, columns)
    return () if set(columns) <= set(known) else (columns,)


def _columns(columns: Iterable[Column]) -> list[str]:
    return sorted(f"{name}={of}" for name, of in columns)


def read_keys(output: Path) -> dict[str, tuple[str, ...]]:
    """The keys of each config file when the output's first runs of it were planned.

    And, under "columns", the scores of these runs.
    """
    if not (output / KEYS).exists():
        return {}
    remedy = "remove it, and run all cells again"
    kept = documents.read_object(output / KEYS, remedy)
    with documents.fields(output / KEYS, remedy):
        return {file: documents.names(keys) for file, keys in kept.items()}


def keep_keys(output: Path, planned: Iterable[Job]) -> None:
    """Keeps those of config files that are new to the output, and the first columns."""
    kept = read_keys(output)
    runs = {run.config: run for job in planned for run in (job, job.needs) if run}
    new = {
        file: tuple(sorted(_flat(load_config(file, run.argument, run.overrides))))
        for file, run in runs.items()
        if file not in kept
    }
    columns = [column for job in planned for column in job.columns]
    new |= {_COLUMNS: tuple(_columns(set(columns)))} if _COLUMNS not in kept and columns else {}
    if new:
        kept |= new
        with atomic_write(output / KEYS) as partial:
            partial.write_text(json.dumps(kept, sort_keys=True) + "\n")


def _flat(config: Any) -> dict[str, Any]:
    return bounds.dotted(json.loads(config.to_json()))


def case_hash(cases: Iterable[store.Case]) -> str:
    """A short hash of the case ids, independent of their order."""
    return digest("\n".join(sorted(case.id for case in cases)))


def fingerprint(config: Any, dataset: store.Dataset) -> str:
    """A short hash of all cases of a data set, as far as the config's task learns from them.

    That is their files, labels or grades, shapes and splits, and how they were prepared.
    """
    files = training_cases.fingerprint(config, dataset, dataset.cases, ())
    cases = [(case.id, case.split, case.order, case.shape) for case in dataset.cases]
    about = dataset.name, dataset.modalities, dataset.classes, dataset.extra.get("seed")
    return digest(json.dumps([about, files, cases]))


def _known(data: StudyData, config: Any, dataset: store.Dataset) -> str:
    """The fingerprint, computed once for all cells: pictures are thousands."""
    key = id(dataset), tasks.needs(config)
    if key not in data.fingerprints:  # with the data set, so that its identity stays its own
        data.fingerprints[key] = dataset, fingerprint(config, dataset)
    return data.fingerprints[key][1]


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
