"""A trained network at work: what `ssl3d.evaluate` and `ssl3d.predict` share.

trained = prediction.load(workdir, "best")
probabilities = prediction.segment(trained, image)     # [*S, C] -> [*S, K]
probabilities = prediction.classify(trained, images)   # of each image [K]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from ssl3d import cli, tasks, xla
from ssl3d.data import geometry, pipeline, store
from ssl3d.downstream import sliding_window
from ssl3d.errors import UserError
from ssl3d.tasks import classification, segmentation
from ssl3d.training import trained_model

# Voxels of the source's grid whose probabilities are resampled at once.
_SLAB = 2**22


class Trained(NamedTuple):
    """A network with its weights on the device.

    Attributes:
      model: as it was saved: config, data set, step.
      forward: [B, *S, C] float32 -> probabilities [B, *S, K] or [B, K]; compiled for each shape.
    """

    model: trained_model.Model
    forward: Callable[[np.ndarray], jax.Array]


def add_options(parser: cli.Parser) -> None:
    """The options of a command that predicts: which model, and how."""
    add = parser.add_argument
    add(
        "--model",
        choices=trained_model.KINDS,
        default="best",
        help="by validation, or as the run ended",
    )
    add("--mirror", action="store_true", help="average over images mirrored as in training")
    add("--overlap", type=float, help="of sliding windows, from 0 to below 1; default: the run's")


def load(
    workdir: Path, kind: str = "best", mirror: bool = False, overlap: float | None = None
) -> Trained:
    """Reads the model of a finished or stopped downstream run.

    Args:
      mirror, overlap: in the place of `config.predict`'s.

    Raises:
      UserError: no such model, one of another version, an overlap that there is not, or mirrored
        images of which training had none.
    """
    saved = trained_model.load(workdir, kind)
    try:
        return _build(workdir, saved, mirror, overlap)
    except (AttributeError, KeyError) as error:
        raise UserError(
            f"{workdir}: the model was saved by another version of ssl3d ({error}); train it again"
        ) from None


def _build(
    workdir: Path, saved: trained_model.Model, mirror: bool, overlap: float | None
) -> Trained:
    name = saved.config.task.name
    if tasks.needs(saved.config) == "image":
        raise UserError(
            f"{workdir}: a run of {name}, which predicts nothing; give one of segmentation or "
            "classification"
        )
    predict = saved.config.predict
    augment = saved.config.augment
    mirrored = bool(augment.flip and augment.flip_axes)
    if mirror and not mirrored:
        raise UserError(
            f"--mirror: {workdir} was trained without mirrored images "
            f"(config.augment.flip={augment.flip}, flip_axes={tuple(augment.flip_axes)})"
        )
    # As it is done, for what is written beside the scores.
    predict.mirror = mirrored and (mirror or predict.mirror)
    if overlap is not None and name == "segmentation":
        if not 0 <= overlap < 1:
            raise UserError(f"--overlap={overlap}: must be at least 0 and below 1, 0.5 is usual")
        predict.overlap = overlap
    # How many cases a class had only weighs the loss.
    labels = tasks.Labels(saved.dataset.classes, (1,) * len(saved.dataset.classes))
    task = tasks.build(saved.config, labels)
    variables = jax.device_put(saved.variables)
    forward = xla.jit(
        lambda variables, images: task.predict(task.network.apply(variables, images, train=False))
    )
    return Trained(saved, lambda images: forward(variables, images))


def _mirrored(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The axes to mirror."""
    return tuple(config.augment.flip_axes) if config.predict.mirror else ()


def segment(trained: Trained, image: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] float32 of an image [*S, C]; of a volume slice by slice if in 2D."""
    config = trained.model.config

    def windows(part: np.ndarray) -> np.ndarray:
        return sliding_window.predict(
            trained.forward,
            part,
            tuple(config.data.crop),
            config.predict.overlap,
            config.predict.batch,
            _mirrored(config),
        )

    if image.ndim - 1 == config.rank:
        return windows(image)
    axis = config.data.slice_axis
    return np.stack([windows(part) for part in np.moveaxis(image, axis, 0)], axis)


def label_map(trained: Trained, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities [*S, K] -> class indices uint8 [*S]."""
    regions = tuple(tuple(region) for region in trained.model.config.task.regions)
    if not regions:
        return sliding_window.label_map(probabilities)
    own = [segmentation.own_class(regions, index) for index in range(len(regions))]
    return sliding_window.label_map(probabilities, own)


def classify(trained: Trained, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Probabilities [K] of each image [*S, C], from its middle, as in validation."""
    config = trained.model.config
    size = tuple(config.data.crop)
    flips = sliding_window.flips(_mirrored(config))
    batch: list[np.ndarray] = []

    def run() -> Iterator[np.ndarray]:
        full = np.stack(batch + batch[-1:] * (config.predict.batch - len(batch)))
        answers = [trained.forward(np.flip(full, [1 + a for a in axes])) for axes in flips]
        yield from np.mean(answers, axis=0)[: len(batch)]

    for image in images:
        middle, _ = pipeline.crop(np.random.default_rng(0), image, size, train=False, beyond=True)
        batch.append(middle.astype(np.float32))
        if len(batch) == config.predict.batch:
            yield from run()
            batch.clear()
    if batch:
        yield from run()


def grade_of(trained: Trained, probability: np.ndarray) -> np.ndarray:
    """The answer to probabilities [..., K]: the likeliest class, or an ordinal head's median."""
    return classification.grade_of(probability, trained.model.config.task.head == "ordinal")


def is_reindexed(case: store.Case) -> bool:
    """Whether the prepared voxels are voxels of the source: permuted, flipped, cropped, no more."""
    source = source_grid(case)
    if source is None:
        return False
    voxel = np.linalg.solve(np.asarray(case.affine), source.affine)
    whole = np.rint(voxel)
    # A deviation of a step adds up along the axis.
    deviation = np.abs(voxel - whole)[:-1] * [*source.shape, 1]
    one_to_one = np.abs(whole[:-1, :-1]).sum() == len(source.shape)
    return bool(one_to_one and deviation.max() < geometry.INDEX_TOLERANCE)


def source_grid(case: store.Case) -> geometry.Grid | None:
    """The grid of the image that the case was prepared from; None of a phantom."""
    if "source_shape" not in case.extra:
        return None
    shape, affine = case.extra["source_shape"], case.extra["source_affine"]
    return geometry.Grid(tuple(shape), np.asarray(affine, np.float64))


def to_source_grid(trained: Trained, probabilities: np.ndarray, case: store.Case) -> np.ndarray:
    """Probabilities [*case.shape, K] -> class indices uint8 on the source's grid.

    What the preparation cropped away is background. Where it resampled, the probabilities are
    interpolated linearly and compared afterwards: borders then run between the voxels of the
    coarser grid, which label maps copied from the nearest voxel would show as steps. Slab by
    slab, so that no more than the label map is held of the larger grid.
    """
    if is_reindexed(case):
        return geometry.to_source(label_map(trained, probabilities), case)[0]
    grid = source_grid(case)
    labels = np.empty(grid.shape, np.uint8)
    thickness = max(1, _SLAB // math.prod(grid.shape[1:]))
    for start in range(0, grid.shape[0], thickness):
        stop = min(start + thickness, grid.shape[0])
        slab = geometry.crop_grid(grid, [(start, stop), *((0, n) for n in grid.shape[1:])])
        part = geometry.resample(probabilities, np.asarray(case.affine), slab, "linear")
        labels[start:stop] = label_map(trained, part)
    return labels
