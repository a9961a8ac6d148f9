"""A trained network at work: what `ssl3d.evaluate` and `ssl3d.predict` share.

trained = prediction.load(workdir, "best")
probabilities = prediction.segment(trained, image)     # [*S, C] -> [*S, K]
probabilities = prediction.classify(trained, images)   # of each image [K]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ssl3d import backend, inference, tasks
from ssl3d.data import pipeline
from ssl3d.errors import UserError
from ssl3d.models import model
from ssl3d.tasks import classification, segmentation


class Trained(NamedTuple):
    """A network with its weights on the device.

    Attributes:
      model: as it was saved: config, data set, step.
      forward: [B, *S, C] float32 -> probabilities [B, *S, K] or [B, K]; compiled for each shape.
    """

    model: model.Model
    forward: Callable[[np.ndarray], jax.Array]


def load(workdir: Path, kind: str = "best") -> Trained:
    """Reads the model of a finished or stopped downstream run. Raises `UserError`."""
    saved = model.load(workdir, kind)
    name = saved.config.task.name
    if name not in tasks.DOWNSTREAM_TASKS:
        raise UserError(
            f"{workdir}: a run of {name}, which predicts nothing; give one of segmentation or "
            "classification"
        )
    # How many cases a class had only weighs the loss.
    labels = tasks.Labels(saved.dataset.classes, (1,) * len(saved.dataset.classes))
    task = tasks.build(saved.config, labels)
    variables = jax.device_put(saved.variables)
    forward = backend.jit(
        lambda variables, images: task.predict(task.network.apply(variables, images, train=False))
    )
    return Trained(saved, lambda images: forward(variables, images))


def _mirrored(trained: Trained) -> tuple[int, ...]:
    config = trained.model.config
    return tuple(range(config.rank)) if config.predict.mirror else ()


def segment(trained: Trained, image: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] float32 of an image [*S, C]; of a volume slice by slice if in 2D."""
    config = trained.model.config

    def windows(part: np.ndarray) -> np.ndarray:
        return inference.predict(
            trained.forward,
            part,
            tuple(config.data.crop),
            config.predict.overlap,
            config.predict.batch,
            _mirrored(trained),
        )

    if image.ndim - 1 == config.rank:
        return windows(image)
    axis = config.data.slice_axis
    return np.stack([windows(part) for part in np.moveaxis(image, axis, 0)], axis)


def label_map(trained: Trained, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] -> class indices uint8 [*S]."""
    regions = tuple(tuple(region) for region in trained.model.config.task.regions)
    if not regions:
        return inference.label_map(probabilities)
    own = [segmentation.own_class(regions, index) for index in range(len(regions))]
    return inference.label_map(probabilities, own)


def classify(trained: Trained, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Probabilities [K] of each image [*S, C], from its middle, as in validation."""
    config = trained.model.config
    size = tuple(config.data.crop)
    flips = inference.flips(_mirrored(trained))
    batch: list[np.ndarray] = []

    def run() -> Iterator[np.ndarray]:
        full = np.stack(batch + batch[-1:] * (config.predict.batch - len(batch)))
        answers = [trained.forward(np.flip(full, [1 + a for a in axes])) for axes in flips]
        yield from np.mean(answers, axis=0)[: len(batch)]

    for image in images:
        middle, _ = pipeline.crop(np.random.default_rng(0), image, size, train=False)
        batch.append(middle.astype(np.float32))
        if len(batch) == config.predict.batch:
            yield from run()
            batch.clear()
    if batch:
        yield from run()


def grade_of(trained: Trained, probability: np.ndarray) -> np.ndarray:
    """The answer to probabilities [..., K]: the likeliest class, or an ordinal head's median."""
    return classification.grade_of(probability, trained.model.config.task.head == "ordinal")
