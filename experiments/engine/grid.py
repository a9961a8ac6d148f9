"""The grid of a study: its cells, the pretraining each of them needs, and what each one runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections

from experiments.engine.study import (
    DOUBLES,
    METHODS,
    Settings,
    Study,
    finetuning_with,
    label_fraction,
)
from experiments.engine.study_data import (
    Plan,
    case_hash,
    code_version,
    fingerprint,
    is_elsewhere,
    labelled_cases,
    short_hash,
)
from ssl3d.data import pipeline
from ssl3d.errors import UserError
from ssl3d.training.cases import choose_cases

PRETRAINING, CELLS = "pretraining", "cells"
PRETRAINING_VALIDATIONS = 5
# What does not decide the result: where things are, and how often something is written.
_FREE = (
    "name",
    "log_every",
    "checkpoint_every",
    "data.path",
    "data.threads",
    "init.encoder",
    "predict.batch",
)
# What a smaller budget makes shorter.
_LENGTHS = ("steps", "optimizer.warmup_steps", "transfer.warmup_steps")


class Cell(NamedTuple):
    """One downstream run of the grid; `repetition` counts from the study's first, mostly 1."""

    method: str
    mode: str
    labels: str
    repetition: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run: a pretraining, or a cell with its evaluation.

    Attributes:
      name: its folder within the output, the last part unique by the hash of its config.
      config, argument: file of configs/ and what follows its colon.
      overrides: of the config.
      row: what is known of the result before it is there.
      needs: the pretraining that has to be there first.
    """

    name: str
    config: str
    argument: str
    overrides: Settings
    row: dict[str, Any]
    needs: Job | None = None

    @property
    def command(self) -> str:
        """The same training as a command, to be run in the output's folder."""
        argument = f":{self.argument}" if self.argument else ""
        options = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        parts = [f"--config=configs/{self.config}.py{argument}", *options]
        return " ".join(["python -m ssl3d.main", f"--workdir={self.name}/run", *parts])


def cells(
    methods: Sequence[str],
    labels: Sequence[str],
    repetitions: int,
    modes: Sequence[str],
    first_repetition: int = 1,
) -> tuple[Cell, ...]:
    """All cells, whole repetitions one after the other, so that a part of them is a fair part."""
    return tuple(
        Cell(method, mode, amount, repetition)
        for repetition in range(first_repetition, first_repetition + repetitions)
        for amount in labels
        for method in methods
        for mode in ([METHODS[method].mode] if METHODS[method].mode else modes)
    )


def share(grid: Sequence[Cell], part: tuple[int, int]) -> tuple[Cell, ...]:
    """The cells of part i of n, i from 1; the parts differ by at most one cell."""
    return tuple(grid[part[0] - 1 :: part[1]])


def pretraining_job(plan: Plan, method: str) -> Job | None:
    """The pretraining of a method; None where there is none. The same for all its cells."""
    study, about = plan.study, METHODS[method]
    if not about.task:
        return None
    supervised = method == "supervised"
    settings = dict(study.data) | {"data.path": str(plan.corpus.path.resolve())}
    settings |= _encoder(study, about.rank)
    settings |= dict(study.pretraining) | dict(study.pretraining_of.get(method, {}))
    transductive = plan.transductive and not supervised  # whose labels are of training cases
    splits = ("train",) if supervised else ("train", "unlabelled")
    if transductive:
        splits += ("val", "test")
    settings["data.train_splits"] = splits
    if is_elsewhere(plan):
        settings["data.phantom.kind"] = ""
    argument = (study.pretraining_preset if is_elsewhere(plan) else "") or study.preset
    config, settings = _resolve(plan, about.task, argument, settings, 1, PRETRAINING_VALIDATIONS)
    cases, _ = choose_cases(config, plan.corpus)
    digest = _digest(config, fingerprint(plan.corpus))
    row = {
        "pretraining": f"{method}-{digest}",
        "method": method,
        "steps": config.steps,
        "cases": len(cases),
        "cases_hash": case_hash(cases),
        "dataset": plan.corpus.name,
        "transductive": transductive,
        "config_hash": digest,
        "draws": pipeline.DRAW_VERSION,
        "code": code_version(),
    }
    return Job(f"{PRETRAINING}/{method}-{digest}", about.task, argument, settings, row)


def jobs(plan: Plan, grid: Iterable[Cell]) -> tuple[Job, ...]:
    """The runs of the cells, in order. Raises `UserError` where the data do not allow one."""
    needs: dict[str, Job | None] = {}
    result = []
    for cell in grid:
        if cell.method not in needs:
            needs[cell.method] = pretraining_job(plan, cell.method)
        result.append(cell_job(plan, cell, needs[cell.method]))
    return tuple(result)


def cell_job(plan: Plan, cell: Cell, needs: Job | None) -> Job:
    """The downstream run of a cell.

    Args:
      needs: the pretraining of its method.

    Raises:
      UserError: more labels than there are, or no test cases.
    """
    study, about = plan.study, METHODS[cell.method]
    rank = about.rank or study.rank
    sliced = rank < study.rank
    file = f"{study.downstream}{rank}d"
    settings = dict(study.data) | {"data.path": str(plan.dataset.path.resolve())}
    settings |= _encoder(study, rank) | dict(study.finetuning)
    subjects = {case.subject for case in labelled_cases(plan, "train")}
    settings |= dict(finetuning_with(study, cell.labels, len(subjects)))
    settings |= dict(study.finetuning_slices) if sliced else {}
    settings |= {
        "seed": cell.repetition,
        "data.label_seed": cell.repetition,
        "data.label_fraction": label_fraction(cell.labels, len(subjects)),
        "transfer.mode": cell.mode,
        # Relative, so that the output may be moved, or be elsewhere on another host.
        "init.encoder": f"{needs.name}/run" if needs else "",
    }
    times = _more_steps(plan, cell.method, file, study.preset, settings)
    config, settings = _resolve(plan, file, study.preset, settings, times, study.validations)
    train, validation = choose_cases(config, plan.dataset)
    test = labelled_cases(plan, "test")
    if not test:
        raise UserError(f"{plan.dataset.path}: no labelled test cases; prepare with --test=0.2")
    before = needs.row if needs else {}
    digest = _digest(
        config, fingerprint(plan.dataset), before.get("config_hash", ""), bool(plan.source)
    )
    name = "-".join((cell.method, cell.mode, cell.labels.replace("%", "pc"), f"r{cell.repetition}"))
    row = {
        "cell": f"{name}-{digest}",
        **cell._asdict(),
        "training_cases": len(train),
        "seed": config.seed,
        "label_seed": config.data.label_seed,
        "steps": config.steps,
        "pretraining": before.get("pretraining", ""),
        "pretraining_steps": before.get("steps", 0),
        "transductive": before.get("transductive", False),
        "config_hash": digest,
        "train_hash": case_hash(train),
        "val_hash": case_hash(validation),
        "test_hash": case_hash(test),
        "pretraining_hash": before.get("cases_hash", ""),
        "draws": pipeline.DRAW_VERSION,
        "code": code_version(),
    }
    return Job(f"{CELLS}/{name}-{digest}", file, study.preset, settings, row, needs)


def load_config(file: str, argument: str, overrides: Settings) -> ml_collections.ConfigDict:
    """The config of configs/FILE.py with its overrides. Raises `UserError` for those it lacks."""
    config = importlib.import_module(f"configs.{file}").get_config(argument)
    try:
        config.update_from_flattened_dict(dict(overrides))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"configs/{file}.py: {' '.join(str(error).split())}") from None
    return config


def _encoder(study: Study, rank: int) -> dict[str, Any]:
    """The network of all methods of a rank; `encoder.2d.KEY` holds for 2D ones only."""
    own = {key: value for key, value in study.encoder.items() if not key.startswith("2d.")}
    if rank == 2:
        own |= {
            key.removeprefix("2d."): value
            for key, value in study.encoder.items()
            if key.startswith("2d.")
        }
    return {f"encoder.{key}": value for key, value in own.items()}


def _resolve(
    plan: Plan, file: str, argument: str, settings: Settings, times: float, validations: int
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """The config, and all its overrides with the numbers of steps as they are in this plan.

    Args:
      times: more steps than the settings say, at the same interval of validation.
      validations: in the settings' steps.
    """
    config = load_config(file, argument, settings)
    lengths = {key: _get(config, key) for key in _LENGTHS}
    scaled = {key: round(n * plan.scale) for key, n in lengths.items() if n is not None}
    steps = max(scaled["steps"], 1)
    scaled["steps"] = max(round(steps * times), 1)
    scaled["validate_every"] = max(steps // validations, 1)
    settings = dict(settings) | scaled
    return load_config(file, argument, settings), settings


def _more_steps(plan: Plan, method: str, file: str, argument: str, settings: Settings) -> float:
    """How many times the usual steps a method trains for."""
    if method in DOUBLES.values():
        return 2.0
    if method != "scratch-long":
        return 1.0
    own = load_config(file, argument, settings).steps
    # The longest of the study's, whichever methods this call was narrowed to.
    before = [
        pretraining_steps(plan.study, name)
        for name in plan.study.methods
        if METHODS[name].rank == plan.study.rank and name != "supervised"
    ]
    return 1 + max(before, default=0) / own


@functools.cache
def _preset_steps(task: str, preset: str) -> int:
    return load_config(task, preset, {}).steps


def pretraining_steps(study: Study, method: str) -> int:
    """Steps of a method's pretraining before any scaling; 0 where there is none."""
    if not METHODS[method].task:
        return 0
    settings = {**study.pretraining, **study.pretraining_of.get(method, {})}
    return settings.get("steps") or _preset_steps(METHODS[method].task, study.preset)


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (config.get(section, {}) if section else config).get(name)


def _digest(config: ml_collections.ConfigDict, *more: object) -> str:
    flat = _flatten(json.loads(config.to_json()))
    kept = {key: value for key, value in flat.items() if key not in _FREE}
    return short_hash(json.dumps([kept, *more], sort_keys=True))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
