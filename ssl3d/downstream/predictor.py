"""A trained network with its weights on the device, applied to images of any size.

trained = predictor.load(workdir, "best")
probabilities = predictor.segment(trained, image)     # [*S, C] -> [*S, K]
probabilities = predictor.classify(trained, images)   # [K] for each image
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict

from ssl3d import documents, limits, tasks, xla
from ssl3d.data import geometry, pipeline, store
from ssl3d.downstream import sliding_window
from ssl3d.errors import UserError
from ssl3d.models import export
from ssl3d.tasks import classification, segmentation
from ssl3d.training import trained_model


class Predictor(NamedTuple):
    """A network with its weights on the device.

    Attributes:
      model: as saved: config, data set, step.
      forward: [B, *S, C] float32 -> probabilities [B, *S, K] or [B, K]; compiled per shape.
      others: the other networks of an ensemble, whose probabilities are averaged with these.
    """

    model: trained_model.Model
    forward: Callable[[np.ndarray], jax.Array]
    others: tuple[Predictor, ...] = ()


def load(
    workdir: Path, kind: str = "best", mirror: bool = False, overlap: float | None = None
) -> Predictor:
    """Reads the model of a finished or stopped downstream run.

    Args:
      mirror, overlap: override `config.predict`.

    Raises:
      UserError: no such model, a model saved by another version, an overlap outside [0, 1), or
        mirroring that training did not do.
    """
    saved = trained_model.load(workdir, kind)
    try:
        return _build(workdir, saved, mirror, overlap)
    except (FlaxError, *documents.MALFORMED) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{workdir}: the model was saved by another version of ssl3d, or its files are damaged "
            f"({type(error).__name__}: {reason}); train it again"
        ) from None


def load_ensemble(
    workdirs: Sequence[Path], kind: str = "best", mirror: bool = False, overlap: float | None = None
) -> Predictor:
    """The networks of one or several runs, as one.

    Raises:
      UserError: as `load`, or runs whose classes, channels or preparation differ.
    """
    first, *others = (load(workdir, kind, mirror, overlap) for workdir in workdirs)
    for workdir, other in zip(workdirs[1:], others, strict=True):
        difference = _difference(first.model, other.model)
        if difference:
            raise UserError(
                f"--workdir={workdir}: {difference} in {workdirs[0]}; the runs of an ensemble need "
                "the same classes, channels and preparation"
            )
    return first._replace(others=tuple(others))


def _difference(first: trained_model.Model, other: trained_model.Model) -> str:
    """The first thing by which the outputs of two networks cannot be averaged; "" if none."""
    for name in ("classes", "modalities"):
        own, wanted = getattr(other.dataset, name), getattr(first.dataset, name)
        if own != wanted:
            return f"its {name} are {', '.join(own)}, not {', '.join(wanted)} as"
    for name in ("regions", "head"):
        own, wanted = other.config.task.get(name), first.config.task.get(name)
        if own != wanted:
            return f"its config.task.{name} is {own}, not {wanted} as"
    own, wanted = (model.dataset.extra.get("settings", {}) for model in (other, first))
    recipes = own.get("recipe", {}), wanted.get("recipe", {})
    for name in sorted(recipes[0].keys() | recipes[1].keys()):
        own_value, value = (recipe.get(name) for recipe in recipes)
        if own_value != value and name != "name":
            return f"its images were prepared with {name} {own_value}, not {value} as"
    return "" if own.get("values") == wanted.get("values") else "its label values are not those"


def _build(
    workdir: Path, saved: trained_model.Model, mirror: bool, overlap: float | None
) -> Predictor:
    if tasks.downstream(saved.config) is None:
        raise UserError(
            f"{workdir}: a run of {saved.config.task.name}, which predicts nothing; give one of "
            "segmentation or classification"
        )
    predict = saved.config.predict
    augment = saved.config.augment
    mirrored = bool(augment.flip and augment.flip_axes)
    if mirror and not mirrored:
        raise UserError(
            f"--mirror: {workdir} was trained without mirrored images "
            f"(config.augment.flip={augment.flip}, flip_axes={tuple(augment.flip_axes)})"
        )
    # Kept in the config, which is written beside the scores.
    predict.mirror = mirrored and (mirror or predict.mirror)
    if overlap is not None and tasks.needs(saved.config) == "label_map":
        if not 0 <= overlap < 1:
            raise UserError(f"--overlap={overlap}: must be at least 0 and below 1, 0.5 is usual")
        predict.overlap = overlap
    # Training cases per class only weight the loss.
    labels = tasks.Labels(saved.dataset.classes, (1,) * len(saved.dataset.classes))
    task = tasks.build(saved.config, labels)
    to_probabilities = task.predict
    if to_probabilities is None:
        raise UserError(f"{workdir}: the task {saved.config.task.name} defines no `predict`")
    _check_variables(workdir, saved, task)
    variables = jax.device_put(saved.variables)
    forward = xla.jit(
        lambda variables, images: to_probabilities(
            task.network.apply(variables, images, train=False)
        ),
        saved.config.get("xla", {}).get("channels_last", False),  # models of 0.1.0 have no such key
    )
    return Predictor(saved, lambda images: forward(variables, images))


def _check_variables(workdir: Path, saved: trained_model.Model, task: tasks.Task) -> None:
    """Raises `UserError` unless the weights fit the network that `model.json` describes."""
    config, channels = saved.config, len(saved.dataset.modalities)
    folder = workdir / "model" / saved.kind
    shape = (config.predict.batch, *config.data.crop, channels)
    limits.check_memory(folder / trained_model.DESCRIPTION, 4 * math.prod(shape), f"inputs {shape}")
    example = jax.ShapeDtypeStruct((1, *config.data.crop, channels), np.float32)
    wanted = jax.eval_shape(
        functools.partial(task.network.init, train=False), jax.random.key(0), example
    )
    found, wanted = (flatten_dict(dict(tree), sep="/") for tree in (saved.variables, wanted))
    export.check_leaves(found, wanted, folder / trained_model.WEIGHTS, trained_model.DESCRIPTION)


def _mirrored_axes(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    return tuple(config.augment.flip_axes) if config.predict.mirror else ()


def segment(trained: Predictor, image: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] float32 of an image [*S, C]; a 2D network takes a volume's slices."""
    total = _segment_alone(trained, image)
    for other in trained.others:
        total += _segment_alone(other, image)
    return total / np.float32(1 + len(trained.others)) if trained.others else total


def _segment_alone(trained: Predictor, image: np.ndarray) -> np.ndarray:
    config = trained.model.config

    def windows(part: np.ndarray) -> np.ndarray:
        return sliding_window.predict(
            trained.forward,
            part,
            tuple(config.data.crop),
            config.predict.overlap,
            config.predict.batch,
            _mirrored_axes(config),
        )

    if image.ndim - 1 == config.rank:
        return windows(image)
    axis = config.data.slice_axis
    return np.stack([windows(part) for part in np.moveaxis(image, axis, 0)], axis)


def label_map(trained: Predictor, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] -> class indices uint8 [*S]."""
    regions = tuple(tuple(region) for region in trained.model.config.task.regions)
    if not regions:
        return sliding_window.label_map(probabilities)
    own = [segmentation.own_class(regions, index) for index in range(len(regions))]
    return sliding_window.label_map(probabilities, own)


def classify(trained: Predictor, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Probabilities [K] of each image [*S, C], from its central crop, as in validation."""
    members = (trained, *trained.others)
    parts = itertools.tee(images, len(members))
    answers = (_classify_alone(*member) for member in zip(members, parts, strict=True))
    for probabilities in zip(*answers, strict=True):
        yield np.mean(probabilities, axis=0)


def _classify_alone(trained: Predictor, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    config = trained.model.config
    size = tuple(config.data.crop)
    flips = sliding_window.flips(_mirrored_axes(config))
    batch: list[np.ndarray] = []

    def run() -> Iterator[np.ndarray]:
        full = np.stack(batch + batch[-1:] * (config.predict.batch - len(batch)))
        outputs = [trained.forward(np.flip(full, tuple(1 + a for a in axes))) for axes in flips]
        yield from np.mean(outputs, axis=0)[: len(batch)]

    for image in images:
        middle, _ = pipeline.crop(np.random.default_rng(0), image, size, train=False, beyond=True)
        batch.append(middle.astype(np.float32))
        if len(batch) == config.predict.batch:
            yield from run()
            batch.clear()
    if batch:
        yield from run()


def grade_of(trained: Predictor, probability: np.ndarray) -> np.ndarray:
    """Probabilities [..., K] -> the most probable class, or the median of an ordinal head."""
    return classification.grade_of(probability, trained.model.config.task.head == "ordinal")


def to_source_grid(trained: Predictor, probabilities: np.ndarray, case: store.Case) -> np.ndarray:
    """Probabilities [*case.shape, K] -> class indices uint8 on the source's grid.

    Voxels that the preparation cropped away are background. Where it resampled, probabilities are
    interpolated linearly before the classes are chosen: borders then run between the voxels of the
    coarser grid, where nearest-neighbour label maps would have steps. Slab by slab: only the label
    map is held in full on the larger grid.
    """
    if geometry.is_reindexed(case):
        return geometry.to_source(label_map(trained, probabilities), case)[0]
    labels = np.empty(case.extra["source_shape"], np.uint8)
    for slab, part in geometry.to_source_slabs(probabilities, case, "linear"):
        labels[slab] = label_map(trained, part)
    return labels
