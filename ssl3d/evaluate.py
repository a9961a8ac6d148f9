"""Scores of a trained network on the cases it has not seen, per case and summed up, and pictures.

    python -m ssl3d.evaluate --workdir=DIR [--split=test] [--model=best|last] [--data=DIR]
                             [--source=DIR] [--output=DIR] [--no-pictures]

Writes cases.csv, summary.json and, of a segmentation, best.png, median.png and worst.png; of a
classification confusion.png and, where there are any, mistakes.png.

Segmentations are scored on the grid of the source's images: with --source, the folder that was
given to ssl3d.prepare, against the files' own labels; without it against the prepared ones where
these are the same voxels, and else on the prepared grid.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from ssl3d import cli
from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.downstream import predictor, segmentation_scores
from ssl3d.downstream.predictor import Trained
from ssl3d.errors import UserError
from ssl3d.figures import case_pictures
from ssl3d.training import cases as sources

CASES, SUMMARY = "cases.csv", "summary.json"
PICTURES = ("best.png", "median.png", "worst.png", "confusion.png", "mistakes.png")
_NAMES = {"accuracy": "accuracy", "kappa": "quadratic kappa", "auroc": "AUROC"}


def parser() -> cli.Parser:
    """The command's options."""
    result = cli.Parser(prog="python -m ssl3d.evaluate", description=__doc__)
    add = result.add_argument
    add("--workdir", required=True, type=Path, help="folder of the run")
    add("--split", default="test", choices=store.SPLITS, help="default: test")
    add("--data", type=Path, help="the prepared data set, if not where the run had it")
    add("--source", type=Path, help="the folder the data set was prepared from")
    add("--output", type=Path, help="default: WORKDIR/evaluation")
    add("--no-pictures", action="store_true", help="tables alone, as for a grid of many runs")
    predictor.add_options(result)
    return result


def open_dataset(trained: Trained, path: Path | None) -> store.Dataset:
    """The data set of the run, or the one at `path`.

    Raises:
      UserError: no data set there, or other channels or classes than the model knows.
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
                f"{', '.join(wanted)}; evaluate on data prepared like those it was trained on"
            )
    if dataset.extra.get("settings") != trained.model.dataset.extra.get("settings"):
        raise UserError(
            f"{dataset.path}: was prepared in another way than the model's training data; prepare "
            "both with the same recipe and options"
        )
    return dataset


def choose_cases(trained: Trained, dataset: store.Dataset, split: str) -> tuple[store.Case, ...]:
    """The labelled cases of the split. Raises `UserError` where there are none."""
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
            f"{dataset.path}: {known[0]} of the split {split} was trained on; the splits are not "
            "those of the run"
        )
    return cases


def write(
    output: Path,
    rows: Sequence[dict[str, Any]],
    figures: dict[str, Figure],
    summary: dict[str, Any],
) -> None:
    """Replaces an earlier evaluation in the folder; the summary is there when all is."""
    for name in (SUMMARY, CASES, *PICTURES):
        (output / name).unlink(missing_ok=True)
    with atomic_write(output / CASES) as file, file.open("w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for name, figure in figures.items():
        with atomic_write(output / name) as file:
            figure.savefig(file, dpi=120)
    with atomic_write(output / SUMMARY) as file:
        file.write_text(json.dumps(_without_nan(summary), indent=1, allow_nan=False) + "\n")


def _without_nan(value: object) -> object:
    """JSON has no NaN: what is not defined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(
    trained: Trained, dataset: store.Dataset, split: str, cases: Sequence[store.Case]
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


def evaluate_segmentation(
    trained: Trained,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    grid: str,
    source: Path | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `cases.csv`, and what the summary says of the scores."""
    bar = tqdm(cases, "evaluating", unit="case", disable=None)
    rows, confusion = segmentation_scores.score_segmentations(trained, dataset, bar, grid, source)
    summary = segmentation_scores.summarise_segmentations(rows, confusion, trained, dataset)
    return rows, {"grid": grid} | summary


def draw_segmentation(
    trained: Trained,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Figure]:
    """The best, the median and the worst case of the rows, by name of the file."""
    figures = {}
    for name, mean in best_median_worst(
        segmentation_scores.mean_foreground(rows, dataset.classes)
    ).items():
        case = next(case for case in cases if case.id == mean["id"])
        # Predicted once more, as the label maps of all cases may not fit into the memory.
        shown = segmentation_scores.predict_case(
            trained, dataset, case, segmentation_scores.PREPARED, None
        )
        own = [row for row in rows if row["id"] == case.id]
        each = ", ".join(f"{row['class']} {row['dice']:.3f}" for row in own)
        figures[f"{name}.png"] = case_pictures.outlines(
            store.load_image(dataset, case),
            shown.truth,
            shown.prediction,
            shown.spacing,
            f"{name}: {case.id}, mean foreground Dice {mean['dice']:.3f}\n{each}",
        )
    return figures


def best_median_worst(means: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the cases with any foreground; of all, where none has."""
    defined = [mean for mean in means if not math.isnan(mean["dice"])] or list(means)
    ranked = sorted(defined, key=lambda mean: mean["dice"])
    return {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def evaluate_classification(
    trained: Trained, dataset: store.Dataset, cases: Sequence[store.Case]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per case with the `probability` of each class, and what the summary says of them."""
    answers = segmentation_scores.score_classifications(trained, dataset, cases)
    rows = list(tqdm(answers, "evaluating", len(cases), unit="case", disable=None))
    return rows, segmentation_scores.summarise_classifications(rows, dataset.classes)


def draw_classification(
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    rows: Sequence[dict[str, Any]],
    confusion: Sequence[Sequence[int]],
) -> dict[str, Figure]:
    """Which grade is taken for which, and the worst mistakes if any, by name of the file."""
    figures = {"confusion.png": case_pictures.confusion(confusion, dataset.classes)}
    worst = case_pictures.worst_mistakes(rows)
    if worst:
        wrong = {row["id"] for row in worst}
        images = {case.id: store.load_image(dataset, case) for case in cases if case.id in wrong}
        figures["mistakes.png"] = case_pictures.mistakes(worst, images, dataset.classes)
    return figures


def _columns(row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A row of a classification with a column for the probability of each class."""
    named = {
        f"probability {name}": float(p) for name, p in zip(classes, row["probability"], strict=True)
    }
    return {key: value for key, value in row.items() if key != "probability"} | named


def headline(summary: dict[str, Any]) -> str:
    """The scores in one line."""
    if summary["task"] == "classification":
        parts = [
            f"{_NAMES[key]} {score['value']:.3f} (95 % {score['low']:.3f} to {score['high']:.3f})"
            for key, score in summary["scores"].items()
        ]
        parts.append(f"the largest class is {summary['largest_class_share']:.3f} of the cases")
        return ", ".join(parts)
    mean = summary["mean_foreground"]
    dice = mean["dice"]
    line = (
        f"mean foreground Dice {dice['mean']:.3f} ± {dice['std']:.3f} "
        f"(95 % interval of the mean {dice['low']:.3f} to {dice['high']:.3f}), "
        f"HD95 {mean['hd95']['mean']:.2f} mm, "
        f"surface Dice at {summary['tolerance_mm']:g} mm {mean['nsd']['mean']:.3f}"
    )
    if mean["absent"]:
        line += f"; {mean['absent']} cases without any foreground are not in it"
    return line


def evaluate(options: argparse.Namespace) -> None:
    """Runs the command. Raises `UserError`, and OSError where the disk does."""
    trained = predictor.load(options.workdir, options.model, options.mirror, options.overlap)
    dataset = open_dataset(trained, options.data)
    cases = choose_cases(trained, dataset, options.split)
    output = options.output or options.workdir / "evaluation"
    # Before hours of predictions that could not be written.
    output.mkdir(parents=True, exist_ok=True)
    introduction = (
        f"{options.workdir}: the {options.model} model, of step {trained.model.step}, on "
        f"{len(cases)} {options.split} cases of {dataset.name}"
    )
    about = describe(trained, dataset, options.split, cases)
    figures: dict[str, Figure] = {}
    if about["task"] == "segmentation":
        grid = segmentation_scores.choose_grid(dataset, cases, options.source)
        print(f"{introduction}; scored against {grid}", flush=True)
        rows, summary = evaluate_segmentation(trained, dataset, cases, grid, options.source)
        if not options.no_pictures:
            figures = draw_segmentation(trained, dataset, cases, rows)
    else:
        if options.source:
            raise UserError("--source: is where label maps are; a classification has none")
        print(introduction, flush=True)
        rows, summary = evaluate_classification(trained, dataset, cases)
        if not options.no_pictures:
            figures = draw_classification(dataset, cases, rows, summary["confusion"])
        rows = [_columns(row, dataset.classes) for row in rows]
    write(output, rows, figures, about | summary)
    print(f"{output}: {headline(about | summary)}")


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    try:
        evaluate(options)
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or options.output or options.workdir
        raise UserError(f"{where}: {error.strerror}; mend that and run again") from None


if __name__ == "__main__":
    cli.run(main)
