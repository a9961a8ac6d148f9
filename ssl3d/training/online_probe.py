"""An online probe: what a readout of a few labels finds in the encoder while a proxy task trains.

One fixed window of each of a few labelled cases is encoded. A readout in closed form is fitted to
`config.probe.cases` training cases and scored on as many validation cases:

    label maps   ridge regression from all levels of the encoder at sampled voxels -> mean
                 foreground Dice
    grades       nearest neighbours of the pooled bottleneck -> quadratic kappa

Beside it stand the same network with its initial weights, and no network: the intensities of the
voxels, or the quantiles of those of the image. The labels influence no weights.

It shows the course of a run at a small cost. `ssl3d.probe` scores whole images of the test split.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from ssl3d import metrics, tasks, xla
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.models import encoders
from ssl3d.models.readouts import (
    THRESHOLDS,
    Levels,
    NormalEquations,
    VoxelSample,
    class_weights,
    corners_of,
    foreground_counts,
    interpolate,
    mean_foreground_dice,
    nearest_neighbours,
    sample_voxels,
)
from ssl3d.tasks.segmentation import middle_of_labels
from ssl3d.training.problem import Problem
from ssl3d.training.step import Variables

# The least voxels of a window, by rank, and the share of the voxels of all training crops that the
# windows of a probe may have: long runs can afford whole crops.
_WINDOW, _SHARE = {3: 24**3, 2: 64**2}, 1e-4
# Voxels that the deepest norm must see.
_LEAST_NORM = 8
_SAMPLED = 1024  # voxels of a window whose features are fitted or scored
# Of the ridge regression on standardised features. With 4 to 32 hippocampi, penalties of 1e-5 to
# 0.1 differ by at most 0.01 in Dice.
_PENALTY = 1e-2
_QUANTILES = 33  # of the intensities of an image


class Probe(NamedTuple):
    """The probe of a run.

    Attributes:
      metric: "dice" or "kappa".
      score: variables of the encoder -> its score; NaN if undefined.
      untrained: score of the encoder's initial weights.
      intensities: score without a network.
    """

    metric: str
    score: Callable[[Variables], float]
    untrained: float
    intensities: float


class Labelled(NamedTuple):
    """Labelled cases of one data set.

    Attributes:
      needs: "label_map" or "grade".
      fitted, scored: the cases to fit a readout to, and to score it on.
    """

    dataset: store.Dataset
    needs: tasks.Needs
    fitted: Sequence[store.Case]
    scored: Sequence[store.Case]


def make_probe(given: Problem, untrained: Variables) -> tuple[Probe | None, str]:
    """Prepares the probe of a run, and compiles its encoder.

    Args:
      untrained: the encoder's initial variables.

    Returns:
      None without labels, and in all processes but the first; then what to print, or "".

    Raises:
      UserError: the data set of `config.probe.data` does not suit.
    """
    config = given.config
    found = find_labels(given)
    if found is None:
        return None, (
            f"no probe: {config.probe.data or given.dataset.path} has no labels for training and "
            "validation cases; name a prepared data set that has, --config.probe.data=DIR"
        )
    if jax.process_index() != 0:
        return None, ""
    readout = _READOUTS[found.needs]
    images, labels = zip(*read_windows(config, found), strict=True)
    evaluate = functools.partial(
        readout.score, labels=labels, fitted=len(found.fitted), classes=len(found.dataset.classes)
    )
    encoder = encoders.build(config.encoder)

    @xla.jit_once
    def encode(variables: Variables, batch: Array) -> Levels:
        features: Any = encoder.apply(variables, batch)
        return tuple(level.astype(jnp.float32) for level in features.levels)

    def score(variables: Variables) -> float:
        # Local copies: in a run of several processes, the others do not take part.
        own = jax.tree.map(jnp.asarray, jax.device_get(variables))
        # One by one, for constant memory.
        return evaluate(
            [
                readout.features(encode(own, image[None]), label)
                for image, label in zip(images, labels, strict=True)
            ]
        )

    raw = [readout.intensities(*pair) for pair in zip(images, labels, strict=True)]
    return Probe(readout.metric, score, score(untrained), evaluate(raw)), ""


def find_labels(given: Problem) -> Labelled | None:
    """The cases of the probe: those with label maps or, failing these, with grades.

    Raises:
      UserError: the data set of `config.probe.data` does not suit the encoder.
    """
    config, dataset = given.config, given.dataset
    parts = given.train_cases, given.validation_cases
    if config.probe.data:
        dataset = store.read(config.probe.data)
        parts = dataset.split("train"), dataset.split("val")
        if dataset.rank < config.rank or len(dataset.modalities) != len(given.dataset.modalities):
            raise UserError(
                f"config.probe.data={config.probe.data}: holds {dataset.rank}D images of "
                f"{len(dataset.modalities)} channels; the run needs {config.rank}D images of "
                f"{len(given.dataset.modalities)}"
            )

    def has_foreground(case: store.Case) -> bool:
        return case.labelled and bool(_foreground(store.load_label(dataset, case)).any())

    def has_grade(case: store.Case) -> bool:
        # The grade of a volume is not that of its slices.
        return case.grade is not None and dataset.rank == config.rank

    kinds: dict[tasks.Needs, Any] = {"label_map": has_foreground, "grade": has_grade}
    for needs, usable in kinds.items():
        fitted, scored = (_first(part, usable, config.probe.cases) for part in parts)
        if fitted and scored:
            return Labelled(dataset, needs, fitted, scored)
    return None


def _foreground(label: np.ndarray) -> np.ndarray:
    return (label > 0) & (label != pipeline.OUTSIDE)


def _first(
    cases: Iterable[store.Case], usable: Callable[[store.Case], bool], count: int
) -> list[store.Case]:
    """The first usable cases in the data set's seeded order."""
    ordered = sorted(cases, key=lambda case: (case.order, case.id))
    return list(itertools.islice(filter(usable, ordered), count))


def window_size(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """*S of a window, in voxels: the config's crop, or less where the run is short."""
    crop, rank = tuple(config.data.crop), config.rank
    whole = math.prod(crop)
    trained = config.steps * config.batch_size * whole
    voxels = max(_SHARE * trained / (2 * config.probe.cases), _WINDOW[rank])
    while voxels < whole:
        factor = (voxels / whole) ** (1 / rank)
        size = tuple(max(round(side * factor), 1) for side in crop)
        if encoders.smallest_norm(config.encoder, size) >= _LEAST_NORM:
            return size
        voxels *= 2
    return crop


def read_windows(
    config: ml_collections.ConfigDict, found: Labelled
) -> Iterator[tuple[np.ndarray, VoxelSample | int]]:
    """A window [*S, C] float32 of each case, the fitted ones first, and its voxels or its grade.

    A window of a label map is centred on the labels; for a 2D encoder it is one of the slice with
    the most foreground.
    """
    size = window_size(config)
    for case in (*found.fitted, *found.scored):
        image = store.load_image(found.dataset, case)
        if found.needs == "grade":
            start = pipeline.crop_around(np.asarray(case.shape) // 2, case.shape, size)
            yield pipeline.cut(image, start, size).astype(np.float32), case.grade or 0
            continue
        label = store.load_label(found.dataset, case)
        if config.rank < found.dataset.rank:
            axis = config.data.slice_axis
            others = tuple(other for other in range(label.ndim) if other != axis)
            at = int(np.count_nonzero(_foreground(label), axis=others).argmax())
            image, label = image.take(at, axis), label.take(at, axis)
        start = pipeline.crop_around(middle_of_labels(label), label.shape, size)
        own = pipeline.cut(label, start, size, outside=pipeline.OUTSIDE)
        rng = np.random.default_rng((config.seed, pipeline.case_key(case)))
        sample = sample_voxels(rng, own, min(_SAMPLED, math.prod(size)))
        yield pipeline.cut(image, start, size).astype(np.float32), sample


def score_voxels(
    features: Sequence[np.ndarray], labels: Sequence[VoxelSample], fitted: int, classes: int
) -> float:
    """Mean foreground Dice of a ridge regression.

    A sampled voxel counts as often as the voxels it represents. The threshold of the foreground is
    selected on the fitted windows.

    Args:
      features: [M, E] of each window.
      labels: of each window; the first `fitted` fit the readout, the others score it.
      classes: K.

    Returns:
      NaN if a feature is not finite.
    """
    if not all(np.isfinite(x).all() for x in features):
        return math.nan
    sizes = np.stack([np.bincount(s.label, s.represents, classes) for s in labels])
    weights = class_weights(sizes[:fitted].sum(0))
    equations = NormalEquations(features[0].shape[-1], classes)
    for x, sample in zip(features[:fitted], labels[:fitted], strict=True):
        equations.add_voxels(x, sample, weights)
    (readout,) = equations.solve((_PENALTY,))
    counts = [
        foreground_counts(readout(x), sample.label, THRESHOLDS, sample.represents)
        for x, sample in zip(features, labels, strict=True)
    ]
    correct, predicted = (np.stack(part) for part in zip(*counts, strict=True))
    own, others = (
        mean_foreground_dice(correct[part], predicted[part], sizes[part, 1:])
        for part in (slice(fitted), slice(fitted, None))
    )
    return float(others[np.argmax(own)])


def score_images(
    features: Sequence[np.ndarray], labels: Sequence[int], fitted: int, classes: int
) -> float:
    """Quadratic kappa of the grades of nearest neighbours.

    Args:
      features: [E] of each image.
      labels: its grade; neighbours are those of the first `fitted` images, the others are scored.
      classes: K.

    Returns:
      NaN if a feature is not finite, or if all grades and predictions are the same.
    """
    x, grades = np.stack(features), np.asarray(labels)
    if not np.isfinite(x).all():
        return math.nan
    predicted = nearest_neighbours(x[fitted:], x[:fitted], grades[:fitted], classes)
    weights = np.ones(len(predicted))
    return float(metrics.quadratic_kappa(grades[fitted:], predicted, classes, weights))


def _voxel_features(levels: Levels, sample: VoxelSample) -> np.ndarray:
    """All levels of one window at the sampled voxels: -> [M, E].

    In NumPy: of so few voxels, compiling the interpolation would be the most expensive part.
    """
    own = [np.asarray(level) for level in levels]
    return np.concatenate(interpolate(own, corners_of(own, sample.voxels[None])), axis=-1)[0]


def _voxel_intensities(image: np.ndarray, sample: VoxelSample) -> np.ndarray:
    """[*S, C] -> [M, C]."""
    return image[tuple(sample.voxels.T)]


def _image_features(levels: Levels, _: int) -> np.ndarray:
    """The bottleneck of one image, averaged: -> [E]."""
    return np.asarray(levels[-1]).reshape(-1, levels[-1].shape[-1]).mean(0)


def _image_intensities(image: np.ndarray, _: int) -> np.ndarray:
    """Quantiles of each channel: [*S, C] -> [33 C]."""
    voxels = image.reshape(-1, image.shape[-1])
    return np.quantile(voxels, np.linspace(0, 1, _QUANTILES), axis=0).ravel()


class _Readout(NamedTuple):
    """How a kind of label is read from features; functions of one window and its label."""

    metric: str
    features: Callable[[Levels, Any], np.ndarray]
    intensities: Callable[[np.ndarray, Any], np.ndarray]
    score: Callable[..., float]


_READOUTS: dict[tasks.Needs, _Readout] = {
    "label_map": _Readout("dice", _voxel_features, _voxel_intensities, score_voxels),
    "grade": _Readout("kappa", _image_features, _image_intensities, score_images),
}
