"""The learning problem that a config describes: data set, cases and task, checked together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ssl3d import bounds, tasks
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.training import config_checks, crop_fit, sharding, sizes, transfer
from ssl3d.training.cases import choose_cases, labels_of, open_dataset

Record = dict[str, np.ndarray]

# Images by which a task adapts its settings; of one collection they differ little.
_SAMPLED = 64


class Problem(NamedTuple):
    """A config with the data and the task that it names.

    Attributes:
      config: with the architecture of the pretrained encoder, if there is one.
      dataset: the prepared data set.
      train_cases, validation_cases: its cases to train and to validate on.
      task: built for these cases.
      left_out: ids of the cases that are smaller than the crop of a proxy task.
      notes: what a reader of the log should know about the data, a line each.
    """

    config: ml_collections.ConfigDict
    dataset: store.Dataset
    train_cases: tuple[store.Case, ...]
    validation_cases: tuple[store.Case, ...]
    task: tasks.Task
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Completes and checks a config, in place, for the devices (all of the run) -> their mesh.

    Raises:
      UserError: a value that no run could use, or one that does not suit the devices.
    """
    bounds.derive(config)
    bounds.check(config)
    mesh = sharding.make_mesh(config.mesh.space, devices)
    sharding.fit_batch(config, mesh)
    bounds.derive(config)
    config_checks.check(config)
    return mesh


def open_problem(
    config: ml_collections.ConfigDict,
) -> tuple[Problem, transfer.Pretrained | None]:
    """Opens the data and builds the task.

    Changes `config.encoder` to a pretrained encoder's, sizes that follow from the data set, and the
    crop of a proxy task to one that lies inside the images.

    Returns:
      The problem, and the pretrained variables to start from, if any.

    Raises:
      UserError: config, data or encoder do not fit together.
    """
    transfer.check_encoder(config)  # before a data set is generated
    dataset = open_dataset(config)
    pretrained = transfer.adopt_architecture(config, len(dataset.modalities))
    bounds.derive(config)
    train_cases, validation_cases = choose_cases(config, dataset)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    with transfer.naming_encoder(config):
        if tasks.needs(config) == "image":
            adapted = tasks.adapt(config, sample_images(config, dataset, train_cases))
            bounds.derive(config)
            fitted = crop_fit.fit_collection(config, train_cases, validation_cases)
            train_cases, validation_cases = fitted.train_cases, fitted.validation_cases
            left_out = fitted.left_out
            notes = (adapted, fitted.message)
        task = tasks.build(config, labels_of(dataset, train_cases))
    notes = tuple(note for note in (sizes.explain(config), *notes) if note)
    found = Problem(config, dataset, train_cases, validation_cases, task, left_out, notes)
    return found, pretrained


def sample_images(
    config: ml_collections.ConfigDict, dataset: store.Dataset, cases: Sequence[store.Case]
) -> list[np.ndarray]:
    """Images [*S, C] of a few cases, evenly over their order, as the task's record sees them."""
    rng = np.random.default_rng(config.seed)
    chosen = list(cases)[:: max(len(cases) // _SAMPLED, 1)][:_SAMPLED]
    data = config.data
    return [
        pipeline.open_example(dataset, case, config.rank, data.slice_axis, data.margin, rng).image
        for case in chosen
    ]


def train_batches(problem: Problem, first_batch: int) -> Iterator[pipeline.Batch]:
    """This process's share of the training batches, endless, from number `first_batch` on."""
    return pipeline.train_batches(
        problem.dataset,
        problem.train_cases,
        first_batch=first_batch,
        **_shared(problem),
    )


def validation_batches(problem: Problem, **changes: Any) -> Iterator[pipeline.ValidationBatch]:
    """This process's share of the validation batches, once through the scored cases."""
    return pipeline.validation_batches(
        problem.dataset,
        scored_cases(problem),
        repeats=problem.config.validation.repeats,
        **_shared(problem) | changes,
    )


def scored_cases(problem: Problem) -> tuple[store.Case, ...]:
    """The first `config.validation.cases` of the validation cases, in their seeded order."""
    cases = problem.validation_cases
    most = problem.config.validation.get("cases", len(cases))
    chosen = sorted(cases, key=lambda case: (case.order, case.id))[:most]
    return tuple(sorted(chosen, key=lambda case: case.id))


def _shared(problem: Problem) -> dict[str, Any]:
    config = problem.config
    return {
        "record": problem.task.record,
        "rank": config.rank,
        "slice_axis": config.data.slice_axis,
        "margin": config.data.margin,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "threads": config.data.threads,
        "buffer": pipeline.BUFFER,
        "label_map": tasks.needs(config) == "label_map",
        "process": (jax.process_index(), jax.process_count()),
    }


def example_record(problem: Problem) -> Record:
    """The record of one validation example, which tells the shapes of all."""
    first = next(validation_batches(problem, threads=1, buffer=1))
    return jax.tree.map(lambda leaf: leaf[0], first["record"])


def check(config: ml_collections.ConfigDict, task: tasks.Task, record: Record, mesh: Mesh) -> None:
    """Raises `UserError` if the task, the data and the devices do not fit together."""
    sharding.check_batch(config.batch_size, "batch_size", mesh)
    micro = config.optimizer.accumulate
    if micro > 1 and task.needs_whole_batch:
        raise UserError(
            f"config.optimizer.accumulate={micro}: {config.task.name} takes its negatives from the "
            "whole batch, micro-batches would change the problem; use more devices"
        )
    for name in task.spatial:
        if record[name].shape[0] % config.mesh.space:
            raise UserError(
                f"config.mesh.space={config.mesh.space}: does not divide the first side of the "
                f"crop, {record[name].shape[0]} voxels; change config.data.crop"
            )
