"""Linear readouts of frozen features: fitted in closed form, and applied to every voxel.

    equations = NormalEquations(features=120, targets=3)
    equations.add(x, y, weights)      case by case: keeps E^2 numbers, float64
    readouts = equations.solve()      one per penalty, from one eigendecomposition

A readout minimises, over its coefficients W and its intercept b, the weighted mean over examples of
|y - b - z W|^2, plus penalty |W|^2, where z are the features standardised to mean 0 and variance 1.

The features of a voxel are all levels of an encoder, interpolated linearly. Interpolation and
readout commute: a prediction interpolates K scores, a fit the E features of its sampled voxels. The
E features never exist at full resolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from tqdm import tqdm

from ssl3d.data import pipeline, store
from ssl3d.downstream import sliding_window
from ssl3d.errors import UserError
from ssl3d.tasks.segmentation import OUTSIDE

Levels = tuple[Array, ...]
"""[B, *S, C], full resolution first, each further level of half the size (rounded up) or less."""

Encode = Callable[[np.ndarray], Levels]
"""Images [B, *S, C] -> their frozen features."""

# Strongest first, as the first wins a tie. Features are standardised and the error is a mean, so
# the same values suit any data: 1000 predicts the mean target, 1e-6 is almost no penalty and still
# far above the rounding errors of float64 sums.
PENALTIES = tuple(10.0**exponent for exponent in range(3, -7, -1))

# Voxels sampled per window for a fit: far more than features, and the same work for a crop of
# 128^3 as for one of 32^3.
VOXELS = 2**14
# Margins by which a foreground class must exceed the background; targets are 0 and 1.
THRESHOLDS = np.linspace(-1, 1, 101)

# A variance below this fraction of the mean square is the rounding error of a constant.
_ROUNDING = 1e-12


class Readout(NamedTuple):
    """A linear function of features: x @ coefficients + intercept.

    Attributes:
      coefficients: float64 [E, K], for raw features, not standardised ones.
      intercept: float64 [K].
      penalty: of the fit.
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    penalty: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features [N, E] -> scores [N, K], float64."""
        return x.astype(np.float64) @ self.coefficients + self.intercept

    def on_device(self) -> tuple[Array, Array]:
        """Coefficients and intercept for `scores_of`, float32."""
        return jnp.asarray(self.coefficients, jnp.float32), jnp.asarray(self.intercept, jnp.float32)


class NormalEquations:
    """The sums over examples that determine a ridge regression.

    Args:
      features: E.
      targets: K.
    """

    def __init__(self, features: int, targets: int) -> None:
        self._weight = 0.0
        self._x, self._y = np.zeros(features), np.zeros(targets)
        self._xx, self._xy = np.zeros((features, features)), np.zeros((features, targets))

    def add(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        """Adds examples: features [N, E], targets [N, K], weights [N], at least 0.

        Raises:
          UserError: a feature is not finite.
        """
        if not np.isfinite(x).all():
            raise UserError("the encoder's features are not finite; pretrain it again")
        x, y = x.astype(np.float64), y.astype(np.float64)
        weighted = x * weights[:, None]
        self._weight += weights.sum()
        self._x += weighted.sum(0)
        self._y += weights @ y
        self._xx += weighted.T @ x
        self._xy += weighted.T @ y

    def solve(self, penalties: Sequence[float] = PENALTIES) -> list[Readout]:
        """One readout per penalty. A constant feature gets the coefficient 0."""
        x, y = self._x / self._weight, self._y / self._weight
        covariance = self._xx / self._weight - np.outer(x, x)
        shared = self._xy / self._weight - np.outer(x, y)
        variance, square = np.diagonal(covariance), np.diagonal(self._xx) / self._weight
        varies = variance > _ROUNDING * square
        # 0, not 1, for a constant feature: this removes it from the equations.
        inverse = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        values, vectors = np.linalg.eigh(covariance * np.outer(inverse, inverse))
        # Rounding may make an eigenvalue of 0 slightly negative.
        values = np.maximum(values, 0)
        projected = vectors.T @ (shared * inverse[:, None])
        readouts = []
        for penalty in penalties:
            standardised = vectors @ (projected / (values + penalty)[:, None])
            coefficients = standardised * inverse[:, None]
            readouts.append(Readout(coefficients, y - x @ coefficients, penalty))
        return readouts


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


def sample_voxels(
    rng: np.random.Generator, label: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples M = `size` voxels of a window, equally many of each class as far as it has them.

    Args:
      label: int [*S].

    Returns:
      Voxels int [M, r], and the number of voxels of its class that each represents [M]; 0 for
      padding, where the window has fewer than M labelled voxels.
    """
    flat = label.ravel()
    classes, sizes = np.unique(flat[flat != OUTSIDE], return_counts=True)
    chosen, represents = np.zeros(size, np.int64), np.zeros(size)
    begin = 0
    # The rarest first: the unused part of its share goes to the others.
    for place, index in enumerate(np.argsort(sizes, kind="stable")):
        number = min(sizes[index], (size - begin) // (len(classes) - place))
        part = slice(begin, begin + number)
        chosen[part] = rng.choice(np.flatnonzero(flat == classes[index]), number, replace=False)
        represents[part] = sizes[index] / number
        begin += number
    return np.stack(np.unravel_index(chosen, label.shape), axis=-1), represents


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Voxels of each class [K] -> the weight of one voxel: the root of the inverse frequency.

    A compromise between equal weights of voxels, where the background dominates, and of classes,
    where each class is over-segmented. On Task04, with 29 cases and an encoder of 200 steps, these
    reach a validation Dice of 0.530 and 0.539, the root 0.557.
    """
    return np.where(counts > 0, np.sqrt(counts.max() / np.maximum(counts, 1)), 0.0)


def _strides(level: Sequence[int], full: Sequence[int]) -> np.ndarray:
    """Voxels of `full` per voxel of `level` along each axis [r]: sizes are halved, rounded up."""
    strides = []
    for side, whole in zip(level, full, strict=True):
        stride = 1
        while -(-whole // stride) > side:
            stride *= 2
        strides.append(stride)
    return np.asarray(strides)


@jax.jit
def features_at(levels: Levels, voxels: Array) -> Array:
    """All levels interpolated linearly at given voxels: int [B, M, r] -> [B, M, E]."""
    full = levels[0].shape[1:-1]

    def interpolate(level: Array, voxels: Array) -> Array:
        sides = np.asarray(level.shape[:-1])
        place = (voxels + 0.5) / _strides(level.shape[:-1], full) - 0.5
        place = jnp.clip(place, 0, sides - 1)
        low = jnp.floor(place).astype(jnp.int32)
        high, part = jnp.minimum(low + 1, sides - 1), place - low
        total = jnp.zeros(())
        for corner in itertools.product((False, True), repeat=len(full)):
            at = jnp.where(np.asarray(corner), high, low)
            weight = jnp.where(np.asarray(corner), part, 1 - part).prod(-1, keepdims=True)
            total += weight * level[tuple(jnp.moveaxis(at, -1, 0))]
        return total

    return jnp.concatenate([jax.vmap(interpolate)(level, voxels) for level in levels], axis=-1)


@jax.jit
def scores_of(levels: Levels, coefficients: Array, intercept: Array) -> Array:
    """Scores of every voxel: coefficients [E, K], intercept [K] -> [B, *S, K]."""
    full = levels[0].shape[1:-1]
    total, begin = intercept, 0
    for level in levels:
        own = coefficients[begin : begin + level.shape[-1]]
        begin += level.shape[-1]
        scores = jnp.matmul(level, own, precision="highest")
        sides = level.shape[1:-1] * _strides(level.shape[1:-1], full)
        shape = (scores.shape[0], *map(int, sides), scores.shape[-1])
        # Strided levels round an odd side up.
        total += jax.image.resize(scores, shape, "linear")[:, *(slice(0, n) for n in full)]
    return total


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
        counts += np.bincount(np.ravel(store.load_label(dataset, case)), minlength=classes)
    weights, targets = class_weights(counts), np.eye(classes)
    size = min(VOXELS, math.prod(config.data.crop))
    rng = np.random.default_rng(config.seed)
    equations = None
    for batch, levels in _encoded(encode, config, dataset, cases, "fitting"):
        sampled = [sample_voxels(rng, window.label, size) for window in batch]
        features = np.asarray(features_at(levels, np.stack([voxels for voxels, _ in sampled])))
        equations = equations or NormalEquations(features.shape[-1], classes)
        for window, x, (voxels, represents) in zip(batch, features, sampled, strict=True):
            label = window.label[tuple(voxels.T)]
            label = np.where(represents > 0, label, 0)
            equations.add(x, targets[label], represents * weights[label])
    assert equations is not None  # there is at least one case
    return equations.solve()


def foreground_counts(
    scores: np.ndarray, label: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels predicted as each foreground class, for all thresholds at once.

    A voxel is foreground where its best foreground class exceeds the background by more than the
    threshold.

    Args:
      scores: [V, K].
      label: int [V].
      thresholds: [T], ascending.

    Returns:
      Numbers of correctly predicted and of predicted voxels: [T, K - 1] each.
    """
    best = scores[:, 1:].argmax(-1)
    margin = scores[:, 1:].max(-1) - scores[:, 0]
    # A margin passes all thresholds below it, which are the first ones.
    passed = np.searchsorted(thresholds, margin)
    shape = (scores.shape[1] - 1, len(thresholds) + 1)
    cells = best * shape[1] + passed

    def count(cells: np.ndarray) -> np.ndarray:
        table = np.bincount(cells, minlength=math.prod(shape)).reshape(shape)
        return table[:, :0:-1].cumsum(1)[:, ::-1].T

    return count(cells[label == best + 1]), count(cells)


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
    some = truth.any(-1)
    if not some.any():
        raise UserError(
            f"{dataset.path}: no case of the split val has any foreground, so no penalty can be "
            "selected; prepare with another split"
        )
    present = (truth > 0)[:, None, None]
    dice = np.where(present, 2 * correct / np.maximum(predicted + truth[:, None, None], 1), 0)
    dice = (dice.sum(-1)[some] / present.sum(-1)[some]).mean(0)
    best, threshold = np.unravel_index(np.argmax(dice), dice.shape)
    return readouts[int(best)], float(THRESHOLDS[threshold]), float(np.max(dice))
