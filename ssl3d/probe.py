"""A linear probe: how much of the labels can be read off a frozen encoder, beside yardsticks.

    python -m ssl3d.probe --config=configs/segment3d.py[:DATASET]
                          --config.init.encoder=RUN [--config.data.label_fraction=0.1]
                          [--split=test] [--output=FILE.json] [--config.key=value ...]

Ridge regression in closed form from features to one-hot classes: no steps, no learning rate. Three
rows: the pretrained encoder, the same network with random weights (of config.seed), and no network
at all. The penalty is chosen on the validation split.

Segmentation: a voxel's features are all levels of the encoder, interpolated linearly; without a
network its intensities. A voxel counts by the root of the inverse frequency of its class, and how
far a foreground class must exceed the background is chosen on the validation split by mean
foreground Dice, together with the penalty. Scores are those of the prepared grid. Answers are
classes, also where config.task.regions names regions.

Classification: the mean and the maximum of the bottleneck over the image; without a network the
most frequent class. The penalty is that of the best quadratic kappa.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from ssl3d import cli, metrics, tasks, xla
from ssl3d.data import store
from ssl3d.downstream import predictor, segmentation_scores, voxel_features
from ssl3d.downstream.voxel_features import Encode, Levels
from ssl3d.errors import UserError
from ssl3d.models import export, heads
from ssl3d.models.encoders import Features
from ssl3d.tasks import classification
from ssl3d.training import config_checks, trained_model, transfer
from ssl3d.training.cases import choose_cases, labelled, labels_of, open_dataset


class Cases(NamedTuple):
    """Of the three parts of a probe: what is fitted, what decides, what is scored."""

    train: Sequence[store.Case]
    validation: Sequence[store.Case]
    test: Sequence[store.Case]


class Row(NamedTuple):
    """What one encoder reaches.

    Attributes:
      name: of the encoder.
      chosen: the number of features, the penalty, and the validation score that decided.
      scores: name -> value, low and high, the 95 % bootstrap interval.
      statistic: how often each test case counts [R, B] -> the decisive score of each draw [R].
      details: more, for the JSON: the threshold, the scores of each case, the confusion.
    """

    name: str
    chosen: dict[str, float | None]
    scores: dict[str, dict[str, float]]
    statistic: Callable[[np.ndarray], np.ndarray]
    details: dict[str, Any]


def segmentation_row(
    name: str,
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Cases,
) -> Row:
    """Fits, chooses and scores, on whole images in overlapping windows."""
    readouts = voxel_features.fit_voxels(encode, config, dataset, cases.train)
    readout, threshold, dice = voxel_features.choose_voxels(
        encode, readouts, config, dataset, cases.validation
    )
    coefficients, intercept = readout.on_device()
    # What the foreground must exceed is the background's head start in the argmax.
    intercept = intercept.at[0].add(threshold)
    trained = _trained(
        config,
        dataset,
        lambda images: voxel_features.scores_of(encode(images), coefficients, intercept),
    )
    shown = voxel_features.progress(cases.test, "scoring")
    rows, confusion = segmentation_scores.score_segmentations(
        trained, dataset, shown, segmentation_scores.PREPARED
    )
    summary = segmentation_scores.summarise_segmentations(rows, confusion, trained, dataset)
    means = segmentation_scores.mean_foreground(rows, dataset.classes)
    values = np.array([mean["dice"] for mean in means])
    some = ~np.isnan(values)

    def mean_dice(weights: np.ndarray) -> np.ndarray:
        own = weights[..., some]
        # A draw may hold none of the cases that have a foreground.
        return own @ values[some] / np.where(own.any(-1), own.sum(-1), np.nan)

    parts = {"mean foreground Dice": "dice", "HD95 (mm)": "hd95"}
    return Row(
        name,
        {"features": len(readout.coefficients), "penalty": readout.penalty, "validation": dice},
        {
            title: {
                name: summary["mean_foreground"][key][of]
                for name, of in (("value", "mean"), ("low", "low"), ("high", "high"))
            }
            for title, key in parts.items()
        },
        mean_dice,
        {
            "threshold": threshold,
            "dice": {mean["id"]: mean["dice"] for mean in means},
            "summary": summary,
        },
    )


def classification_row(
    name: str,
    encode: Encode | None,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Cases,
) -> Row:
    """Fits, chooses and scores; without an encoder the most frequent grade is the answer."""
    classes = len(dataset.classes)
    grades = Cases(*(np.array([case.grade for case in part]) for part in cases))
    counts = np.bincount(grades.train, minlength=classes)
    chosen = {"features": None, "penalty": None, "validation": None}
    if encode is None:
        scores = np.tile(counts / counts.sum(), (len(cases.test), 1))
    else:
        features = Cases(*(pooled(encode, config, dataset, part) for part in cases))
        equations = voxel_features.NormalEquations(features.train.shape[1], classes)
        weights = classification.class_weights(tuple(counts), config.task.class_weights)
        equations.add(features.train, np.eye(classes)[grades.train], weights[grades.train])
        readouts = equations.solve()
        kappas = [
            metrics.quadratic_kappa(
                grades.validation,
                readout(features.validation).argmax(-1),
                classes,
                np.ones(len(grades.validation)),
            )
            for readout in readouts
        ]
        best = int(np.argmax(np.nan_to_num(kappas, nan=-1.0)))
        scores = readouts[best](features.test)
        chosen = {
            "features": features.train.shape[1],
            "penalty": readouts[best].penalty,
            "validation": float(kappas[best]),
        }
    answers = scores.argmax(-1)
    subjects = [case.subject for case in cases.test]
    lines = metrics.classification_scores(grades.test, answers, scores, subjects)
    titles = {"kappa": "quadratic kappa", "accuracy": "accuracy", "auroc": "AUROC"}
    by_name = {line["score"]: line for line in lines}
    return Row(
        name,
        chosen,
        {
            title: {end: by_name[key][end] for end in ("value", "low", "high")}
            for key, title in titles.items()
        },
        lambda weights: metrics.quadratic_kappa(grades.test, answers, classes, weights),
        {"confusion": metrics.confusion_matrix(answers, grades.test, classes).tolist()},
    )


def pooled(
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
) -> np.ndarray:
    """Mean and maximum of the bottleneck over the middle of each image: [N, 2 E], float32."""

    def forward(images: np.ndarray) -> Array:
        features = Features(encode(images))
        return jnp.concatenate([heads.pooled(features, how) for how in ("mean", "max")], axis=-1)

    shown = voxel_features.progress(cases, "encoding")
    images = (store.load_image(dataset, case) for case in shown)
    # What goes through a trained network image by image, here features instead of probabilities.
    return np.stack(list(predictor.classify(_trained(config, dataset, forward), images)))


def _trained(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    forward: Callable[[np.ndarray], Array],
) -> predictor.Trained:
    """The probe in the place of a trained network, to predict and be scored like one."""
    return predictor.Trained(trained_model.Model({}, config, dataset, (), 0, "probe"), forward)


def build_encoders(
    config: ml_collections.ConfigDict, dataset: store.Dataset, task: tasks.Task
) -> dict[str, Encode]:
    """The pretrained encoder, and the same one with random weights. Raises `UserError`."""
    encoder = task.network.encoder
    example = np.zeros((1, *config.data.crop, len(dataset.modalities)), np.float32)
    random = xla.jit_once(encoder.init)(jax.random.key(config.seed), example)
    nested = {name: {"encoder": tree} for name, tree in random.items()}
    _, pretrained = export.load_encoder(config.init.encoder)
    loaded, _ = transfer.load_into(nested, pretrained, config.init.encoder)
    loaded = {name: tree["encoder"] for name, tree in loaded.items()}

    @xla.jit
    def levels(variables: Mapping[str, Any], images: Array) -> Levels:
        return tuple(x.astype(jnp.float32) for x in encoder.apply(variables, images).levels)

    return {
        "pretrained encoder": functools.partial(levels, loaded),
        "untrained encoder": functools.partial(levels, random),
    }


def table_line(row: Row, seconds: float) -> str:
    """A row of the table, under `table_head`."""
    features, penalty, validation = (
        "-" if row.chosen[key] is None else f"{row.chosen[key]:{form}}"
        for key, form in (("features", "d"), ("penalty", "g"), ("validation", ".3f"))
    )
    scores = [f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for s in row.scores.values()]
    return (
        f"{row.name:<20}{features:>9}{penalty:>9}{validation:>11}"
        + "".join(f"{text:>27}" for text in scores)
        + f"{seconds:>9.1f}"
    )


def table_head(row: Row) -> str:
    columns = "".join(f"{name:>27}" for name in row.scores)
    return f"{'':<20}{'features':>9}{'penalty':>9}{'validation':>11}{columns}{'seconds':>9}"


def compare(rows: Sequence[Row], subjects: Sequence[str]) -> list[dict[str, Any]]:
    """How far the first row's decisive score is above each other's, on the same draws of cases."""
    first, *others = rows
    differences = []
    for other in others:

        def difference(weights: np.ndarray, other: Row = other) -> np.ndarray:
            return first.statistic(weights) - other.statistic(weights)

        low, high = metrics.bootstrap_interval(difference, np.asarray(subjects))
        value = float(difference(np.ones(len(subjects))))
        differences.append({"row": other.name, "value": value, "low": low, "high": high})
    return differences


def probe(config: ml_collections.ConfigDict, split: str) -> dict[str, Any]:
    """Prints the table and the line that sums it up. Returns all numbers. Raises `UserError`."""
    config = config.copy_and_resolve_references()
    if tasks.needs(config) == "image":
        raise UserError(
            f"--config: {config.task.name} has no labels to probe with; give a segment or "
            "classify config, e.g. configs/segment3d.py"
        )
    if not config.init.encoder:
        raise UserError("config.init.encoder is empty: give a run, --config.init.encoder=DIR")
    config_checks.check(config)
    dataset = open_dataset(config)
    transfer.adopt_architecture(config, len(dataset.modalities))
    cases = Cases(*choose_cases(config, dataset), labelled(config, dataset.split(split)))
    if not cases.test:
        raise UserError(
            f"{dataset.path}: no labelled case in the split {split}; choose another, --split"
        )
    task = tasks.build(config, labels_of(dataset, cases.train))
    encoders: dict[str, Encode | None] = dict(build_encoders(config, dataset, task))
    if config.task.name == "segmentation":
        config.task.regions = ()
        # Fitted on images as they are, and the threshold chosen on such.
        config.predict.mirror = False
        make_row = segmentation_row
        encoders["raw intensities"] = lambda images: (jnp.asarray(images),)
    else:
        make_row = classification_row
        encoders["majority class"] = None
    print(
        f"{config.init.encoder}: linear probe on {dataset.name}, {len(cases.train)} training, "
        f"{len(cases.validation)} validation and {len(cases.test)} {split} cases",
        flush=True,
    )
    rows, lines = [], []
    for name, encode in encoders.items():
        started = time.monotonic()
        row = make_row(name, encode, config, dataset, cases)
        seconds = time.monotonic() - started
        if not rows:
            print(table_head(row))
        print(table_line(row, seconds), flush=True)
        rows.append(row)
        about = {"row": name, "seconds": round(seconds, 1)}
        lines.append(about | row.chosen | {"scores": row.scores} | row.details)
    differences = compare(rows, [case.subject for case in cases.test])
    score, value = next(iter(rows[0].scores.items()))
    texts = [
        f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f}) against {d['row']}"
        for d in differences
    ]
    print(f"{config.init.encoder}: {score} {value['value']:.3f}; {', '.join(texts)}")
    return {
        "name": config.name,
        "task": config.task.name,
        "encoder": config.init.encoder,
        "dataset": dataset.name,
        "data": str(dataset.path),
        "split": split,
        "cases": {part: [case.id for case in chosen] for part, chosen in cases._asdict().items()},
        "seed": config.seed,
        "rows": lines,
        "differences": differences,
    }


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    parser = cli.Parser(prog="python -m ssl3d.probe", description=__doc__, epilog=cli.CONFIG_HELP)
    parser.add_argument("--split", default="test", choices=store.SPLITS, help="default: test")
    parser.add_argument("--output", type=Path, help="a JSON file for all numbers")
    options, config = cli.parse_with_config(parser, arguments)
    try:
        if options.output:
            # Before minutes of work whose numbers could not be written.
            options.output.parent.mkdir(parents=True, exist_ok=True)
            if options.output.is_dir():
                raise UserError(f"{options.output}: is a folder; give a file, --output=FILE.json")
        document = json.dumps(probe(config, options.split))
        if options.output:
            # JSON has no NaN: what is not defined is null.
            document = json.loads(document, parse_constant=lambda _: None)
            options.output.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        where = error.filename or options.output
        raise UserError(f"{where}: {error.strerror}; mend that and run again") from None


if __name__ == "__main__":
    cli.run(main)
