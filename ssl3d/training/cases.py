"""The data that a config names: the data set on disk, its training and validation cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from ssl3d import tasks
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.phantoms import dataset as phantom


def open_dataset(config: ml_collections.ConfigDict) -> store.Dataset:
    """The prepared data set of `config.data`; a phantom is generated on first use.

    Its folder must exist then, unless it is the preset's.

    Raises:
      UserError: no path, no data set there, or one of the wrong rank.
    """
    data = config.data
    if not data.path:
        raise UserError(
            f"config.data.path is empty: prepare the {data.preset} data with "
            "python -m ssl3d.prepare and give its folder, --config.data.path=DIR"
        )
    path = Path(data.path)
    if data.phantom.kind:
        # A mistyped path to prepared data is no place for a phantom.
        if not path.is_dir() and path != phantom.default_folder(data.phantom.kind):
            raise UserError(
                f"{path}: no such folder, and this config would generate a phantom there; for "
                "prepared data correct the path and give a preset, e.g. "
                f"--config=rpl3d:folder; for a phantom, first run mkdir -p {path}"
            )
        if jax.process_index() == 0:
            counts = {split: data.phantom[split] for split in ("train", "val", "test")}
            phantom.write(
                data.phantom.kind, path, tuple(data.phantom.shape), counts, data.phantom.seed
            )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("phantom generated")
    dataset = store.read(path)
    if dataset.rank < config.rank:
        raise UserError(
            f"{path}: holds pictures ({dataset.rank}D); a {config.rank}D config needs volumes, "
            f"use the {dataset.rank}D config of the task"
        )
    if tasks.needs(config) == "grade" and dataset.rank > config.rank:
        raise UserError(
            f"{path}: holds volumes, and the grade of a volume is not that of its slices; use "
            "--config=classify3d"
        )
    if not 0 <= data.slice_axis < 3:
        raise UserError(f"config.data.slice_axis={data.slice_axis}: 0, 1 or 2")
    return dataset


# What a downstream task needs -> what to say of a data set without it.
_WITHOUT = {
    "grade": "no case has a grade; prepare it with a table of grades, ssl3d.prepare --csv=FILE",
    "label_map": "no case has a label map; prepare it with its labels, ssl3d.prepare --labels=DIR",
}


def choose_cases(
    config: ml_collections.ConfigDict, dataset: store.Dataset
) -> tuple[tuple[store.Case, ...], tuple[store.Case, ...]]:
    """The cases to train on and to validate on. Raises `UserError` if there are none."""
    unknown = set(config.data.train_splits) - set(store.SPLITS)
    if unknown:
        raise UserError(
            f"config.data.train_splits: no split {unknown.pop()!r}; choose from "
            + ", ".join(store.SPLITS)
        )
    train = dataset.split(*config.data.train_splits)
    validation = dataset.split("val")
    needs = tasks.needs(config)
    if needs != "image":
        if not labelled(config, dataset.cases):
            raise UserError(f"{dataset.path}: {_WITHOUT[needs]}")
        train = label_subset(labelled(config, train), config)
        validation = labelled(config, validation)
    for cases, what in ((train, "to train on"), (validation, "in the split val")):
        if not cases:
            raise UserError(f"{dataset.path}: no cases {what}; prepare with other splits")
    return train, validation


def labelled(
    config: ml_collections.ConfigDict, cases: Sequence[store.Case]
) -> tuple[store.Case, ...]:
    """The cases with the label that the downstream task needs: a label map or a grade."""
    if tasks.needs(config) == "grade":
        return tuple(case for case in cases if case.grade is not None)
    return tuple(case for case in cases if case.labelled)


def label_subset(
    cases: Sequence[store.Case], config: ml_collections.ConfigDict
) -> tuple[store.Case, ...]:
    """The cases of the first `config.data.label_fraction` of the subjects, at least one subject.

    Nested: a smaller fraction is a subset of a larger one with the same `label_seed`. Seed 0 is
    the order of the manifest, any other seed shuffles it.
    """
    order = {case.subject: case.order for case in cases}
    subjects = sorted(order, key=lambda subject: (order[subject], subject))
    if config.data.label_seed:
        shuffle = np.random.RandomState(config.data.label_seed).permutation(len(subjects))
        subjects = [subjects[i] for i in shuffle]
    count = max(1, round(config.data.label_fraction * len(subjects)))
    chosen = set(subjects[:count])
    return tuple(case for case in cases if case.subject in chosen)


def labels_of(dataset: store.Dataset, cases: Sequence[store.Case]) -> tasks.Labels:
    """The class names, and the number of `cases` of each grade."""
    grades = [case.grade for case in cases if case.grade is not None]
    counts = np.bincount(grades, minlength=len(dataset.classes)) if grades else ()
    return tasks.Labels(dataset.classes, tuple(int(count) for count in counts))


def fingerprint(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    train: Sequence[store.Case],
    validation: Sequence[store.Case],
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Checksums of all that a run learns from: by part, the cases, their files and labels.

    Labels count where the task needs them. The ids of the cases left out are kept as they are.
    """
    needs = tasks.needs(config)
    settings = dataset.extra.get("settings")

    def checksum(cases: Sequence[store.Case]) -> str:
        rows = [
            {
                "id": case.id,
                "subject": case.subject,
                "spacing": case.spacing,
                # Read from `extra` only if need be: of a large collection it is on disk.
                "image": files["image"] if "image" in files else case.extra.get("content"),
                "label": files.get("label") if needs == "label_map" else None,
                "grade": case.grade if needs == "grade" else None,
            }
            for case, files in ((case, case.files) for case in cases)
        ]
        return hashlib.sha256(json.dumps([settings, rows]).encode()).hexdigest()[:16]

    found: dict[str, Any] = {"cases.train": checksum(train), "cases.val": checksum(validation)}
    return found | ({"cases.left_out": list(left_out)} if left_out else {})
