"""The trained downstream network: weights and all that a prediction needs, in one small folder.

model/best/  model/last/    by the score of validation; as the run ended
    model.safetensors       flat names, e.g. params/encoder/level_0/first/conv/kernel
    model.json              step, scores, the whole config, modalities, classes, and how the
                            data set was prepared, for new images to be prepared alike
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.models import export
from ssl3d.training import run_log

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
KINDS = ("best", "last")


def describe(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    train_cases: Sequence[store.Case],
    step: int,
    scores: dict[str, float],
) -> dict[str, Any]:
    """What `model.json` holds, but for the checksum."""
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
    """Writes `workdir/model/KIND`, from the first process alone."""
    if jax.process_index() == 0:
        folder = workdir / "model" / kind
        export.save_variables(folder, WEIGHTS, DESCRIPTION, jax.device_get(variables), description)


class Best:
    """Keeps the model of the highest score so far, also over the pieces of a run.

    Args:
      workdir: the run's folder.
      goes_on: whether a model that is there is of this run, and not of one that begins anew.
    """

    def __init__(self, workdir: Path, goes_on: bool) -> None:
        self._workdir = workdir
        self._score: float | None = None
        file = workdir / "model" / "best" / DESCRIPTION
        if goes_on and file.exists():
            self._score = json.loads(file.read_text())["best"]

    def offer(self, score: float, variables: Any, description: dict[str, Any]) -> None:
        """Saves the model if its score is higher than all before.

        One that is NaN (no case has what is scored) is lower than any; the first is kept.
        """
        score = score if np.isfinite(score) else float(np.finfo(np.float32).min)
        if self._score is None or score > self._score:
            self._score = score
            save(self._workdir, "best", variables, description | {"best": score})


class Model(NamedTuple):
    """A model as it was saved.

    Attributes:
      variables: for `network.apply`; NumPy arrays.
      config: of the run.
      dataset: the manifest of the data set it was trained on, without its cases.
      trained_on: ids of the cases it was trained on.
      step: of the run, at which it was saved.
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
      UserError: no such model, or files that are damaged.
    """
    folder = workdir / "model" / kind
    file = folder / DESCRIPTION
    try:
        about = json.loads(file.read_text())
        config = ml_collections.ConfigDict(about["config"])
        dataset = store.Dataset(
            path=folder,
            name=about["dataset"]["name"],
            rank=int(about["dataset"]["rank"]),
            modalities=tuple(about["dataset"]["modalities"]),
            classes=tuple(about["dataset"]["classes"]),
            splits_by=about["dataset"]["splits_by"],
            cases=(),
            extra=about["dataset"]["extra"],
        )
        step, trained_on = int(about["step"]), tuple(about["trained_on"])
    except FileNotFoundError:
        other = next(name for name in KINDS if name != kind)
        hint = (
            f"there is one with --model={other}"
            if (workdir / "model" / other / DESCRIPTION).exists()
            else "give the folder of a segmentation or classification run"
        )
        raise UserError(f"{file}: missing; {hint}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}: {error})") from None
    found = export.read_weights(folder / WEIGHTS, about.get("sha256"))
    variables = traverse_util.unflatten_dict(found, sep="/")
    return Model(variables, config, dataset, trained_on, step, kind)
