"""The trained downstream network: its weights and all that a prediction needs, in one folder.

model/best/  model/last/    by validation score; at the end of the run
    model.safetensors       flat names, e.g. params/encoder/level_0/first/conv/kernel
    model.json              step, scores, the whole config, modalities, classes, and how the
                            data set was prepared, so that new images are prepared alike
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from ssl3d import documents
from ssl3d.data import store
from ssl3d.models import export
from ssl3d.training import run_log
from ssl3d.training.model_kinds import KINDS
from ssl3d.training.problem import Problem

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
_REMEDY = "restore the folder model/, or train again"

# Keys of a line of `metrics.jsonl` beside the scores.
_NO_SCORES = ("step", "split", "seconds")


def describe(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    train_cases: Sequence[store.Case],
    step: int,
    scores: dict[str, float],
) -> dict[str, Any]:
    """The content of `model.json` without the checksum."""
    return {
        "step": step,
        "scores": run_log.as_json(scores),
        "trained_on": [case.id for case in train_cases],
        "config": json.loads(config.to_json()),
        "dataset": {
            "name": dataset.name,
            "rank": dataset.rank,
            "modalities": list(dataset.modalities),
            "classes": list(dataset.classes),
            "splits_by": dataset.splits_by,
            "extra": dataset.extra,
        },
    }


def save(workdir: Path, kind: str, variables: Any, description: dict[str, Any]) -> None:
    """Writes `workdir/model/KIND`, in the first process only."""
    if jax.process_index() == 0:
        folder = workdir / "model" / kind
        export.save_variables(folder, WEIGHTS, DESCRIPTION, jax.device_get(variables), description)


class Keeper:
    """Keeps the model with the highest validation score so far, across resumes, and the last one.

    Args:
      workdir: the run's folder.
      resumed: whether a model in it belongs to this run, and not to one that starts afresh.
    """

    def __init__(self, problem: Problem, workdir: Path, resumed: bool) -> None:
        self._problem = problem
        self._workdir = workdir
        self._best: float | None = None
        self._scores: dict[int, dict[str, float]] = {}
        if not resumed:
            return
        file = workdir / "model" / "best" / DESCRIPTION
        if file.exists():
            document = documents.read_object(file, _REMEDY)
            if "replaces" in document:  # a kill left the weights of one of two models
                document, _ = export.read_described(file, file.with_name(WEIGHTS), remedy=_REMEDY)
            with documents.fields(file, _REMEDY):
                self._best = float(document["best"])
        for line in run_log.read_metrics(workdir):
            if line["split"] == "val":
                scores = {name: value for name, value in line.items() if name not in _NO_SCORES}
                filled = {name: math.nan if v is None else v for name, v in scores.items()}
                self._scores = {line["step"]: filled}

    def offer(self, step: int, scores: dict[str, float], variables: Any) -> None:
        """Saves the model of a validation after training has begun if its score is the highest.

        NaN (the score is undefined for every case) ranks below any number; of equal scores the
        first model is kept.
        """
        self._scores = {step: scores}
        if step == 0:
            return
        score = scores[self._problem.task.best_by]
        score = score if np.isfinite(score) else float(np.finfo(np.float32).min)
        if self._best is None or score > self._best:
            self._best = score
            save(self._workdir, "best", variables, self._describe(step) | {"best": score})

    def save_last(self, step: int, variables: Any) -> None:
        """Saves the model of the last step."""
        save(self._workdir, "last", variables, self._describe(step))

    def _describe(self, step: int) -> dict[str, Any]:
        config, dataset, train_cases, *_ = self._problem
        return describe(config, dataset, train_cases, step, self._scores.get(step, {}))


class Model(NamedTuple):
    """A saved model.

    Attributes:
      variables: for `network.apply`; NumPy arrays.
      config: of the run.
      dataset: the manifest of its data set, without the cases.
      trained_on: ids of its training cases.
      step: of the run at which it was saved.
      kind: "best" or "last".
    """

    variables: dict[str, Any]
    config: ml_collections.ConfigDict
    dataset: store.Dataset
    trained_on: tuple[str, ...]
    step: int
    kind: str


def load(workdir: Path, kind: str = "best") -> Model:
    """Reads `workdir/model/KIND`.

    Raises:
      UserError: no such model, or damaged files.
    """
    folder = workdir / "model" / kind
    file = folder / DESCRIPTION
    other = next(name for name in KINDS if name != kind)
    hint = (
        f"there is one with --model={other}"
        if (workdir / "model" / other / DESCRIPTION).exists()
        else "give the folder of a segmentation or classification run"
    )
    missing = f"{file}: missing; {hint}"
    about, found = export.read_described(file, folder / WEIGHTS, missing, _REMEDY)
    with documents.fields(file, _REMEDY):
        config = ml_collections.ConfigDict(about["config"])
        dataset = store.Dataset(
            path=folder,
            name=str(about["dataset"]["name"]),
            rank=int(about["dataset"]["rank"]),
            modalities=documents.names(about["dataset"]["modalities"]),
            classes=documents.names(about["dataset"]["classes"]),
            splits_by=str(about["dataset"]["splits_by"]),
            cases=(),
            extra=dict(about["dataset"]["extra"]),
        )
        step, trained_on = int(about["step"]), documents.names(about["trained_on"])
    variables = traverse_util.unflatten_dict(found, sep="/")
    return Model(variables, config, dataset, trained_on, step, kind)
