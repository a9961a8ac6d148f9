"""Evaluates a trained network on one split of a data set: scores, their summary, and pictures."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.downstream import contract, predictor
from ssl3d.downstream.contract import Evaluation
from ssl3d.downstream.predictor import Predictor
from ssl3d.errors import UserError
from ssl3d.training import cases as sources

CASES, SUMMARY = "cases.csv", "summary.json"
# Those of the shipped tasks: another task's may be left of an earlier evaluation.
PICTURES = ("best.png", "median.png", "worst.png", "confusion.png", "mistakes.png")


def evaluate(
    *,
    workdir: Path,
    output: Path,
    split: str,
    data: Path | None,
    source: Path | None,
    pictures: bool,
    model: str,
    mirror: bool,
    overlap: float | None,
) -> str:
    """Runs `ssl3d.evaluate`, whose options these are; returns the scores in one line.

    Raises:
      UserError: a run, data or options that do not fit each other.
      OSError: the output cannot be written.
    """
    trained = predictor.load(workdir, model, mirror, overlap)
    downstream = contract.module_of(trained.model.config)
    dataset = open_dataset(trained, data)
    cases = choose_cases(trained, dataset, split)
    # Before hours of predictions that could not be written.
    output.mkdir(parents=True, exist_ok=True)
    truth = downstream.choose_truth(dataset, cases, source)
    introduction = (
        f"{workdir}: the {model} model, of step {trained.model.step}, on "
        f"{len(cases)} {split} cases of {dataset.name}"
    )
    print(introduction + (f"; scored against {truth}" if truth else ""), flush=True)
    evaluation = downstream.evaluate(trained, dataset, cases, truth, source)
    figures = evaluation.figures() if pictures else {}
    summary = describe(trained, dataset, split, cases) | dict(evaluation.summary)
    write(output, evaluation, figures, summary)
    return f"{output}: {downstream.headline(summary)}"


def open_dataset(trained: Predictor, path: Path | None) -> store.Dataset:
    """The data set of the run, or the one at `path`.

    Raises:
      UserError: no data set there, or other channels, classes or preparation than the model's.
    """
    config = trained.model.config.copy_and_resolve_references()
    if path:
        config.data.path = str(path)
        config.data.phantom.kind = ""
    dataset = sources.open_dataset(config)
    for what in ("modalities", "classes"):
        own, wanted = getattr(dataset, what), getattr(trained.model.dataset, what)
        if own != wanted:
            raise UserError(
                f"{dataset.path}: its {what} are {', '.join(own) or 'none'}, the model's "
                f"{', '.join(wanted)}; evaluate on data prepared like the training data"
            )
    if dataset.extra.get("settings") != trained.model.dataset.extra.get("settings"):
        raise UserError(
            f"{dataset.path}: prepared in another way than the model's training data; prepare "
            "both with the same recipe and options"
        )
    return dataset


def choose_cases(trained: Predictor, dataset: store.Dataset, split: str) -> tuple[store.Case, ...]:
    """The labelled cases of the split.

    Raises:
      UserError: there are none, or the model was trained on one that is not of the split `train`.
    """
    cases = sources.labelled(trained.model.config, dataset.split(split))
    if not cases:
        others = {case.split for case in sources.labelled(trained.model.config, dataset.cases)}
        raise UserError(
            f"{dataset.path}: no labelled case in the split {split}; there are some in "
            + (", ".join(sorted(others)) or "no split")
        )
    known = sorted({case.id for case in cases} & set(trained.model.trained_on))
    if known and split != "train":
        raise UserError(
            f"{dataset.path}: the model was trained on {known[0]} of the split {split}; use the "
            "data set and the splits of the run"
        )
    return cases


def describe(
    trained: Predictor, dataset: store.Dataset, split: str, cases: tuple[store.Case, ...]
) -> dict[str, Any]:
    """What was evaluated, for `summary.json`."""
    config = trained.model.config
    text = json.dumps(json.loads(config.to_json()), sort_keys=True)
    return {
        "task": config.task.name,
        "name": config.name,
        "model": {"kind": trained.model.kind, "step": trained.model.step},
        "predict": config.predict.to_dict(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "dataset": dataset.name,
        "data": str(dataset.path),
        "split": split,
        "splits_by": dataset.splits_by,
        "cases": len(cases),
        "subjects": len({case.subject for case in cases}),
        "classes": list(dataset.classes),
    }


def write(
    output: Path, evaluation: Evaluation, figures: dict[str, Figure], summary: dict[str, Any]
) -> None:
    """Replaces an earlier evaluation in the folder; the summary is written last."""
    for name in (SUMMARY, CASES, *PICTURES):
        (output / name).unlink(missing_ok=True)
    with atomic_write(output / CASES) as file, file.open("w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, list(evaluation.rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(evaluation.rows)
    for name, figure in figures.items():
        with atomic_write(output / name) as file:
            figure.savefig(file, dpi=120)
    # JSON has no NaN: undefined scores are null.
    document = json.loads(json.dumps(summary), parse_constant=lambda _: None)
    with atomic_write(output / SUMMARY) as file:
        file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
