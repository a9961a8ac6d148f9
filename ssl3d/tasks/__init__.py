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
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from ssl3d.errors import UserError

Arrays = Any  # a pytree of arrays
Metrics = dict[str, tuple[Any, Any]]

PROXY_TASKS = ("cpc", "exemplar", "jigsaw", "rotation", "rpl")
DOWNSTREAM_TASKS = ("segmentation", "classification")


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


def build(config: ml_collections.ConfigDict, labels: Labels | None = None) -> Task:
    """The task that `config.task.name` names, built from `config`.

    Args:
      labels: for downstream tasks.

    Raises:
      UserError: no such task, or settings that contradict each other.
    """
    name = config.task.name
    if name not in PROXY_TASKS + DOWNSTREAM_TASKS:
        raise UserError(
            f"config.task.name={name!r}: no such task; there are "
            + ", ".join(PROXY_TASKS + DOWNSTREAM_TASKS)
        )
    module = importlib.import_module(f"ssl3d.tasks.{name}")
    return module.build(config, labels) if name in DOWNSTREAM_TASKS else module.build(config)
