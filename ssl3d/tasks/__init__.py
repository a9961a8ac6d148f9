"""The learning problems, one file of pure functions each.

A task is everything that is particular to one problem; the loop (`ssl3d.train`) knows nothing
else about it:

    record(rng, example, train)   host, NumPy, inside Grain: crop, tile -> arrays of one example
    views(key, record, train)     device, inside jit, one example (the loop maps it over the
                                  batch, each example with a key of its own): draw targets,
                                  augment -> inputs, targets
    network                       a Linen module with a submodule `encoder`: inputs -> outputs
    loss(outputs, targets)        device, pure: -> loss [B], {name: (sum [B], count [B])}
    collect(inputs, outputs, targets)
                                  device, optional: what `score` needs of each case
    score(collected, subjects, repeats)
                                  host, optional: scores that need many cases at once
    predict(outputs)              device, downstream only: -> probabilities
    panels(record, inputs, targets)   pictures of one example for `ssl3d.inspect`

`targets` reaches `loss` with two more arrays: `subject` int32 [B], whose image it is, and `valid`
bool [B], false for the padding of a last batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import ml_collections
import numpy as np

from ssl3d.errors import UserError

Arrays = Any  # a pytree of arrays
Metrics = dict[str, tuple[Any, Any]]

# The one place that knows tasks by name; any other name is that of a module to import.
TASKS = {
    name: f"ssl3d.tasks.{name}"
    for name in (
        "cpc",
        "exemplar",
        "jigsaw",
        "rotation",
        "rpl",
        "segmentation",
        "classification",
    )
}

# What of a case a task learns from: its image alone, or with it a label map or a grade.
Needs = Literal["image", "label_map", "grade"]


class Labels(NamedTuple):
    """What a downstream task is told of the labels.

    Attributes:
      classes: names, index 0 is the background (grade 0).
      counts: training cases of each grade; empty where labels are maps.
    """

    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


class Box(NamedTuple):
    """A patch in the whole image: its name, first voxel and shape, in voxels."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Panel(NamedTuple):
    """One picture of `ssl3d.inspect`: `image` [*S, C], or None for the whole image of the case."""

    title: str
    image: np.ndarray | None
    boxes: tuple[Box, ...] = ()


class Task(NamedTuple):
    """See the module's docstring."""

    record: Callable[..., dict[str, np.ndarray]]
    views: Callable[..., tuple[Arrays, dict[str, Any]]]
    network: Any
    loss: Callable[[Arrays, dict[str, Any]], tuple[Any, Metrics]]
    panels: Callable[..., list[Panel]]
    collect: Callable[[Arrays, Arrays, dict[str, Any]], dict[str, Any]] | None = None
    score: Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], Metrics] | None = None
    # The other examples of the batch are negatives, so micro-batches would change the problem.
    needs_whole_batch: bool = False
    # The metric of validation by which the best model is kept; none is kept of a proxy task.
    best_by: str = ""
    # outputs -> probabilities [B, *S, K] of segmentation, [B, K] of classification.
    predict: Callable[[Arrays], Arrays] | None = None


def module_of(name: str) -> ModuleType:
    """The module of a task: one of `TASKS`, or any dotted name, e.g. "my_package.my_task".

    Raises:
      UserError: no such task.
    """
    if name not in TASKS and "." not in name:
        raise UserError(
            f"config.task.name={name!r}: no such task; choose {', '.join(TASKS)}, or give the "
            "module of your own, e.g. my_package.my_task"
        )
    path = TASKS.get(name, name)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the task is there; something it imports is not
        raise UserError(f"config.task.name={name!r}: no module {error.name!r} to import") from None


def needs(config: ml_collections.ConfigDict) -> Needs:
    """What of a case the config's task learns from; its module's `NEEDS`, by default the image."""
    return getattr(module_of(config.task.name), "NEEDS", "image")


def downstream(config: ml_collections.ConfigDict) -> ModuleType | None:
    """The module that evaluates and predicts with the config's task, its module's `DOWNSTREAM`.

    None for a proxy task.
    """
    path = getattr(module_of(config.task.name), "DOWNSTREAM", "")
    return importlib.import_module(path) if path else None


def build(config: ml_collections.ConfigDict, labels: Labels | None = None) -> Task:
    """The task that `config.task.name` names, built from `config`.

    Args:
      labels: for tasks that need labels.

    Raises:
      UserError: no such task, or settings that contradict each other.
    """
    module = module_of(config.task.name)
    return module.build(config) if needs(config) == "image" else module.build(config, labels)
