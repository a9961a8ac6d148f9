"""The features of all voxels of a data set, window by window, to fit and select readouts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from ssl3d.data import pipeline, store
from ssl3d.data.pipeline import OUTSIDE
from ssl3d.downstream import sliding_window
from ssl3d.errors import UserError
from ssl3d.models.readouts import (
    THRESHOLDS,
    Levels,
    NormalEquations,
    Readout,
    class_weights,
    features_at,
    foreground_counts,
    mean_foreground_dice,
    sample_voxels,
    scores_of,
)

Encode = Callable[[np.ndarray], Levels]
"""Images [B, *S, C] -> their frozen features."""

# Voxels sampled per window for a fit: far more than features, and the same work for a crop of
# 128^3 as for one of 32^3.
VOXELS = 2**14


class Window(NamedTuple):
    """A part of a case, of the size of the config's crop.

    Attributes:
      case: index of the case.
      image: [*S, C] float32, padded by reflection.
      label: [*S], `OUTSIDE` beyond the image and where an earlier window has the voxel.
    """

    case: int
    image: np.ndarray
    label: np.ndarray


def windows(
    config: ml_collections.ConfigDict, dataset: store.Dataset, cases: Iterable[store.Case]
) -> Iterator[Window]:
    """Windows that hold every labelled voxel once; for a 2D config, those of all slices."""
    size = tuple(config.data.crop)
    for number, case in enumerate(cases):
        whole = store.load_image(dataset, case), store.load_label(dataset, case)
        parts: Iterable[tuple[np.ndarray, np.ndarray]] = [whole]
        if config.rank < dataset.rank:
            axis = config.data.slice_axis
            parts = zip(*(np.moveaxis(array, axis, 0) for array in whole), strict=True)
        for image, label in parts:
            remaining = np.array(label)
            for begin in sliding_window.window_starts(label.shape, size, overlap=0):
                # Centres an image smaller than the window, as `sliding_window.predict` does.
                start = np.asarray(begin) - np.maximum(np.subtract(size, label.shape), 0) // 2
                own = pipeline.cut(remaining, start, size, outside=OUTSIDE).copy()
                yield Window(number, pipeline.cut(image, start, size).astype(np.float32), own)
                taken = tuple(slice(a, a + n) for a, n in zip(begin, size, strict=True))
                remaining[taken] = OUTSIDE


def _encoded(
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    what: str,
) -> Iterator[tuple[list[Window], Levels]]:
    """Batches of windows with their features."""
    stream = windows(config, dataset, progress(cases, what))
    while batch := list(itertools.islice(stream, config.predict.batch)):
        yield batch, encode(np.stack([window.image for window in batch]))


def progress(cases: Sequence[store.Case], what: str) -> Iterable[store.Case]:
    """The cases, with a bar on a terminal."""
    return tqdm(cases, what, unit="case", disable=None, leave=False)


def fit_voxels(
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
) -> list[Readout]:
    """One readout per penalty, strongest first. Every encoder is fitted on the same voxels."""
    classes = len(dataset.classes)
    counts = np.zeros(classes, np.int64)
    for case in cases:
        label = np.ravel(store.load_label(dataset, case))
        counts += np.bincount(label[label != OUTSIDE], minlength=classes)
    weights = class_weights(counts)
    size = min(VOXELS, math.prod(config.data.crop))
    rng = np.random.default_rng(config.seed)
    equations = None
    for batch, levels in _encoded(encode, config, dataset, cases, "fitting"):
        samples = [sample_voxels(rng, window.label, size) for window in batch]
        voxels = np.stack([sample.voxels for sample in samples])
        features = np.asarray(features_at(levels, voxels))
        equations = equations or NormalEquations(features.shape[-1], classes)
        for x, sample in zip(features, samples, strict=True):
            equations.add_voxels(x, sample, weights)
    assert equations is not None  # there is at least one case
    return equations.solve()


def choose_voxels(
    encode: Encode,
    readouts: Sequence[Readout],
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
) -> tuple[Readout, float, float]:
    """The readout and the threshold of the best mean foreground Dice on `cases`, and that Dice.

    Raises:
      UserError: no case has foreground.
    """
    classes = len(dataset.classes)
    correct = np.zeros((len(cases), len(readouts), len(THRESHOLDS), classes - 1))
    predicted, truth = np.zeros_like(correct), np.zeros((len(cases), classes - 1))
    for batch, levels in _encoded(encode, config, dataset, cases, "choosing"):
        inside = [window.label != OUTSIDE for window in batch]
        labels = [window.label[mask] for window, mask in zip(batch, inside, strict=True)]
        for window, label in zip(batch, labels, strict=True):
            truth[window.case] += np.bincount(label, minlength=classes)[1:]
        for number, readout in enumerate(readouts):
            scores = np.asarray(scores_of(levels, *readout.on_device()))
            for window, own, mask, label in zip(batch, scores, inside, labels, strict=True):
                counts = foreground_counts(own[mask], label, THRESHOLDS)
                correct[window.case, number] += counts[0]
                predicted[window.case, number] += counts[1]
    dice = mean_foreground_dice(correct, predicted, truth)
    if np.isnan(dice).any():
        raise UserError(
            f"{dataset.path}: no case of the split val has any foreground, so no penalty can be "
            "selected; prepare with another split"
        )
    best, threshold = np.unravel_index(np.argmax(dice), dice.shape)
    return readouts[int(best)], float(THRESHOLDS[threshold]), float(np.max(dice))
