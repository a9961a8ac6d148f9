"""Linear probes: how much of the labels a linear readout recovers from frozen features.

Three rows, fitted and scored alike: the pretrained encoder, the same architecture with random
weights, and no network at all.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from ssl3d import bounds, metrics, tasks, xla
from ssl3d.data import store
from ssl3d.downstream import contract
from ssl3d.downstream.contract import Parts, ProbeRow
from ssl3d.downstream.predictor import Predictor
from ssl3d.downstream.voxel_features import Encode
from ssl3d.errors import UserError
from ssl3d.intervals import PerDraw
from ssl3d.models import export
from ssl3d.models.readouts import Levels
from ssl3d.training import config_checks, trained_model, transfer
from ssl3d.training.cases import choose_cases, labelled, labels_of, open_dataset


class Difference(TypedDict):
    """How far the first row's first score is above that of `row`, with its bootstrap interval."""

    row: str
    value: float
    low: float
    high: float


def probe(config: ml_collections.ConfigDict, split: str) -> dict[str, Any]:
    """Fits and scores the three rows, and prints them as a table with a closing summary.

    Args:
      config: of a downstream task, with `config.init.encoder`.
      split: of the cases that are scored.

    Returns:
      All numbers, for a JSON file.

    Raises:
      UserError: a proxy task, no encoder or one that does not fit, or no labelled cases.
    """
    config = config.copy_and_resolve_references()
    downstream = contract.module_of(config)
    if not config.init.encoder:
        raise UserError("config.init.encoder is empty: give a run, --config.init.encoder=DIR")
    config_checks.check(config)
    transfer.check_encoder(config)  # before a data set is generated
    dataset = open_dataset(config)
    transfer.adopt_architecture(config, len(dataset.modalities))
    bounds.derive(config)  # a crop that follows from the data follows from the depth too
    cases = Parts(*choose_cases(config, dataset), labelled(config, dataset.split(split)))
    if not cases.test:
        raise UserError(
            f"{dataset.path}: no labelled case in the split {split}; choose another, --split"
        )
    task = tasks.build(config, labels_of(dataset, cases.train))
    encoders: dict[str, Encode | None] = {
        **build_encoders(config, dataset, task),
        downstream.WITHOUT_NETWORK: None,
    }
    print(
        f"{config.init.encoder}: linear probe on {dataset.name}, {len(cases.train)} training, "
        f"{len(cases.validation)} validation and {len(cases.test)} {split} cases",
        flush=True,
    )
    rows: list[ProbeRow] = []
    documents: list[dict[str, Any]] = []
    for name, encode in encoders.items():
        started = time.monotonic()
        row = downstream.probe(name, encode, config, dataset, cases)
        seconds = time.monotonic() - started
        if not rows:
            print(table_head(row))
        print(table_line(row, seconds), flush=True)
        rows.append(row)
        about = {"row": name, "seconds": round(seconds, 1), **row.selection._asdict()}
        documents.append(about | {"scores": row.scores} | row.details)
    differences = compare(rows, [case.subject for case in cases.test])
    print(f"{config.init.encoder}: {headline(rows[0], differences)}")
    return {
        "name": config.name,
        "task": config.task.name,
        "encoder": config.init.encoder,
        "dataset": dataset.name,
        "data": str(dataset.path),
        "split": split,
        "cases": {part: [case.id for case in chosen] for part, chosen in cases._asdict().items()},
        "seed": config.seed,
        "rows": documents,
        "differences": differences,
    }


def write(document: dict[str, Any], file: Path) -> None:
    """Writes the numbers of `probe` as JSON, undefined scores as null."""
    document = json.loads(json.dumps(document), parse_constant=lambda _: None)
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def build_encoders(
    config: ml_collections.ConfigDict, dataset: store.Dataset, task: tasks.Task
) -> dict[str, Encode]:
    """The pretrained encoder, and the same architecture with random weights of the config's seed.

    Raises:
      UserError: the encoder cannot be read, or does not fit the config's network.
    """
    encoder = task.network.encoder
    example = np.zeros((1, *config.data.crop, len(dataset.modalities)), np.float32)
    random = xla.jit_once(encoder.init)(jax.random.key(config.seed), example)
    nested = {name: {"encoder": tree} for name, tree in random.items()}
    _, pretrained = export.load_encoder(config.init.encoder)
    loaded, _ = transfer.load_into(nested, {"encoder": pretrained}, config.init.encoder)
    loaded = {name: tree["encoder"] for name, tree in loaded.items()}

    def levels(variables: Mapping[str, Any], images: Array) -> Levels:
        return tuple(x.astype(jnp.float32) for x in encoder.apply(variables, images).levels)

    encode = xla.jit(levels, config.xla.channels_last)
    return {
        "pretrained encoder": functools.partial(encode, loaded),
        "untrained encoder": functools.partial(encode, random),
    }


def as_predictor(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    forward: Callable[[np.ndarray], Array],
) -> Predictor:
    """A readout in the place of a trained network, to predict and be scored like one."""
    return Predictor(trained_model.Model({}, config, dataset, (), 0, "probe"), forward)


def table_head(row: ProbeRow) -> str:
    """The column titles of `table_line`."""
    columns = "".join(f"{name:>27}" for name in row.scores)
    return f"{'':<20}{'features':>9}{'penalty':>9}{'validation':>11}{columns}{'seconds':>9}"


def table_line(row: ProbeRow, seconds: float) -> str:
    """A row of the table."""
    features, penalty, validation = (
        "-" if value is None else f"{value:{form}}"
        for value, form in zip(row.selection, ("d", "g", ".3f"), strict=True)
    )
    scores = [f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for s in row.scores.values()]
    return (
        f"{row.name:<20}{features:>9}{penalty:>9}{validation:>11}"
        + "".join(f"{text:>27}" for text in scores)
        + f"{seconds:>9.1f}"
    )


def compare(rows: Sequence[ProbeRow], subjects: Sequence[str]) -> list[Difference]:
    """The first row's first score minus each other row's, paired over the same resamples."""
    first, *others = rows
    differences: list[Difference] = []
    for other in others:

        def difference(weights: np.ndarray, other: ProbeRow = other) -> PerDraw:
            return first.statistic(weights) - other.statistic(weights)

        low, high = metrics.bootstrap_interval(difference, np.asarray(subjects))
        value = float(difference(np.ones(len(subjects))))
        differences.append({"row": other.name, "value": value, "low": low, "high": high})
    return differences


def headline(row: ProbeRow, differences: Sequence[Difference]) -> str:
    """The first row's first score, and its differences to the other rows, in one line."""
    score, value = next(iter(row.scores.items()))
    texts = [
        f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f}) against {d['row']}"
        for d in differences
    ]
    return f"{score} {value['value']:.3f}; {', '.join(texts)}"
