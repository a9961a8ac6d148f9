"""The contract of a task, and the registry of tasks.

A task holds all that is particular to one learning problem, as pure functions. The training loop
(`ssl3d.training.loop`) and the commands know nothing else about it:

    record(rng, example, train)     host, NumPy, in Grain's threads: crop, cut into patches ->
                                    the arrays of one example, better views of its image or
                                    `pipeline.Pieces` than copies
    views(key, record, train)       device, jitted, one example (the loop maps it over the batch,
                                    with a key per example): sample targets, augment ->
                                    inputs, targets
    network                         Linen module with a submodule `encoder`: inputs -> outputs
    loss(outputs, targets)          device, pure: -> loss [B], {metric: (sum [B], count [B])}
    panels(record, inputs, targets, outputs=None)
                                    pictures of one example for `ssl3d.inspect`
    headline, spatial, ...          what else the project needs to know, see `Task`

For `loss`, `targets` has two more arrays: `subject` int32 [B], whose image it is, and `valid`
bool [B], false for the padding of a last batch.

A task is a module with `build(config) -> Task`. It may also define `NEEDS`, what of a case it
learns from, and `DOWNSTREAM`, the module that evaluates and predicts with it; with another `NEEDS`
than "image", `build` takes the data set's `Labels` too. docs/tasks.md adds a task step by step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, Integer, Real, Shaped

from ssl3d import extensions
from ssl3d.data.pipeline import Parts
from ssl3d.losses import Metrics

Arrays = Any  # a pytree of arrays
Targets = dict[str, Shaped[Array, "B ..."]]  # of a batch
# On the host, of the M examples of a validation set: arrays, and sums and counts of metrics.
Collected = dict[str, Shaped[np.ndarray, "M ..."]]
Scores = dict[str, tuple[Real[np.ndarray, "..."], Real[np.ndarray, "..."]]]

# What of a case a task learns from: its image alone, or a label map or a grade too.
Needs = Literal["image", "label_map", "grade"]


class Labels(NamedTuple):
    """What a downstream task knows about the labels of a data set.

    Attributes:
      classes: names, index 0 is the background (grade 0).
      counts: training cases of each grade; empty for label maps.
    """

    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


class Box(NamedTuple):
    """The outline of a patch in the whole image: its name, first voxel and shape, in voxels."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]


class Panel(NamedTuple):
    """One picture of `ssl3d.inspect`; without `image`, the whole image of the case.

    `label` is laid over the image, in a colour for every class.
    """

    title: str
    image: Real[np.ndarray, "*S C"] | None
    boxes: tuple[Box, ...] = ()
    label: Integer[np.ndarray, "*S"] | None = None


class Task(NamedTuple):
    """A task, see the module's docstring.

    Attributes:
      panels: the first panel is that of the whole image; `outputs` are the network's for this
        example where there is a trained one.
      headline: the metric that is shown, given a 95 % interval over subjects and compared, with
        the metric "chance" beside it where the task has one; higher is better.
      shown: further metrics in the printed lines; NAME of `headline`_NAME is its label.
      spatial: keys of the record whose first axes are space; a mesh can split them among devices.
      collect: device: inputs, outputs, targets -> the arrays [B, ...] that `score` needs.
      score: host: collected [M, ...], subjects [M], repeats [M] -> `Scores` that need many cases
        at once; they replace metrics of the same name.
      needs_whole_batch: whether the other examples of a batch are negatives, so that gradient
        accumulation would change the problem.
      learns_from_noise: whether noise can be told apart or continued too, so that accuracy on it is
        no shortcut: there is no noise audit of the task.
      best_by: the validation metric that selects the best model, the highest; "" for a proxy task,
        which keeps the encoder of its last step and no model.
      predict: downstream only: outputs -> probabilities, [B, *S, K] of a segmentation, [B, K] of a
        classification.
    """

    record: Callable[..., Parts]
    views: Callable[..., tuple[Arrays, dict[str, Any]]]
    network: nn.Module
    loss: Callable[[Any, Targets], tuple[Float[Array, " B"], Metrics]]
    panels: Callable[..., list[Panel]]
    headline: str
    shown: tuple[str, ...] = ()
    spatial: tuple[str, ...] = ()
    collect: Callable[[Any, Any, Targets], dict[str, Shaped[Array, "B ..."]]] | None = None
    score: (
        Callable[[Collected, Integer[np.ndarray, " M"], Integer[np.ndarray, " M"]], Scores] | None
    ) = None
    needs_whole_batch: bool = False
    learns_from_noise: bool = False
    best_by: str = ""
    predict: Callable[[Any], Float[Array, "B ... K"]] | None = None


# The only place that knows tasks by name. Any other name is that of a module to import.
TASKS = {
    name: f"ssl3d.tasks.{name}"
    for name in (
        "contrast",
        "cpc",
        "exemplar",
        "jigsaw",
        "joint",
        "mae",
        "rotation",
        "rpl",
        "segmentation",
        "classification",
    )
}


def module_of(name: str) -> ModuleType:
    """The module of a task: one of `TASKS`, or any dotted name, e.g. "my_package.my_task".

    Raises:
      UserError: no such task.
    """
    if name in TASKS:
        return importlib.import_module(TASKS[name])
    return extensions.module("config.task.name", name, choices=TASKS)


def proxies() -> tuple[str, ...]:
    """The names of `TASKS` that are proxy tasks, which need no labels."""
    return tuple(name for name in TASKS if _needs(module_of(name)) == "image")


def needs(config: ml_collections.ConfigDict) -> Needs:
    """What of a case the config's task learns from: `NEEDS` of its module, "image" by default."""
    return _needs(module_of(config.task.name))


def _needs(module: ModuleType) -> Needs:
    return getattr(module, "NEEDS", "image")


def adapt(config: ml_collections.ConfigDict, images: Sequence[np.ndarray]) -> str:
    """Lets the config's task set what depends on the collection: `adapt` of its module.

    Args:
      images: a few of the training images, [*S, C].

    Returns:
      What changed, for the log; "" for nothing.
    """
    module = module_of(config.task.name)
    return module.adapt(config, images) if hasattr(module, "adapt") else ""


def equal_axes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Axes that the config's task exchanges, so that the crop must have the same side along them.

    `equal_axes(config)` of its module, by default none.
    """
    module = module_of(config.task.name)
    return module.equal_axes(config) if hasattr(module, "equal_axes") else ()


def encoded_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], ...]:
    """*S of the images that the config's task shows the encoder, in voxels.

    `encoded_sizes(config)` of its module, by default the crop, coarser by `config.task.coarsen`.

    Raises:
      UserError: settings that contradict each other.
    """
    module = module_of(config.task.name)
    if hasattr(module, "encoded_sizes"):
        return module.encoded_sizes(config)
    return (tuple(side // config.task.get("coarsen", 1) for side in config.data.crop),)


def downstream(config: ml_collections.ConfigDict) -> ModuleType | None:
    """The module that evaluates and predicts with the config's task; None for a proxy task."""
    path = getattr(module_of(config.task.name), "DOWNSTREAM", "")
    return importlib.import_module(path) if path else None


def build(config: ml_collections.ConfigDict, labels: Labels | None = None) -> Task:
    """The task that `config.task.name` names, built from `config`.

    Args:
      labels: of the data set, for tasks that need them.

    Raises:
      UserError: no such task, or settings that contradict each other.
    """
    module = module_of(config.task.name)
    make = extensions.attribute("config.task.name", module, "build")
    return make(config) if needs(config) == "image" else make(config, labels)
