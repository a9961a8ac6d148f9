"""A linear readout of frozen features: fitted in closed form, and read at every voxel.

    equations = NormalEquations(features=120, targets=3)
    equations.add(x, y, weights)      case by case: what is kept is E^2 numbers, float64
    readouts = equations.solve()      of every penalty, from one eigendecomposition

A readout minimises, over its coefficients W and its intercept b, the weighted mean over examples of
|y - b - z W|^2, plus penalty |W|^2, where z are the features standardised to mean 0 and variance 1.

The features of a voxel are all levels of an encoder, interpolated linearly. As that is linear too,
a prediction interpolates K scores, and a fit the E features of those voxels alone that it sees:
nowhere are there E features at full size.
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
"""[B, *S, C] at full resolution first, each further one of half the size, rounded up, or less."""

Encode = Callable[[np.ndarray], Levels]
"""Images [B, *S, C] -> their frozen features."""

# The strongest first: where a choice is a tie, the first is taken. Features are standardised and
# the error is a mean, so the same grid suits any data: 1000 answers with the mean target, 1e-6
# is hardly a penalty, and what float64 sums round off is far below it.
PENALTIES = tuple(10.0**exponent for exponent in range(3, -7, -1))

# The most voxels of a window that a fit sees: far more than features, and as much work for a
# crop of 128^3 as for one of 32^3.
VOXELS = 2**14
# By how much a foreground class must exceed the background; its targets are 0 and 1.
THRESHOLDS = np.linspace(-1, 1, 101)

# A variance below this share of the mean square is what rounding leaves of a constant.
_ROUNDING = 1e-12


class Readout(NamedTuple):
    """A linear function of features: x @ coefficients + intercept.

    Attributes:
      coefficients: float64 [E, K], of the features as they are, not standardised.
      intercept: float64 [K].
      penalty: that it was fitted with.
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
    """The sums over all examples that a ridge regression needs.

    Args:
      features: E.
      targets: K.
    """

    def __init__(self, features: int, targets: int) -> None:
        self._weight = 0.0
        self._x, self._y = np.zeros(features), np.zeros(targets)
        self._xx, self._xy = np.zeros((features, features)), np.zeros((features, targets))

    def add(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        """Adds examples: features [N, E], targets [N, K], how much each counts [N], at least 0.

        Raises:
          UserError: a feature that is not finite.
        """
        if not np.isfinite(x).all():
            raise UserError("features that are not finite cannot be probed; pretrain again")
        x, y = x.astype(np.float64), y.astype(np.float64)
        weighted = x * weights[:, None]
        self._weight += weights.sum()
        self._x += weighted.sum(0)
        self._y += weights @ y
        self._xx += weighted.T @ x
        self._xy += weighted.T @ y

    def solve(self, penalties: Sequence[float] = PENALTIES) -> list[Readout]:
        """The readout of each penalty. A feature that never changes gets the coefficient 0."""
        x, y = self._x / self._weight, self._y / self._weight
        covariance = self._xx / self._weight - np.outer(x, x)
        shared = self._xy / self._weight - np.outer(x, y)
        variance, square = np.diagonal(covariance), np.diagonal(self._xx) / self._weight
        varies = variance > _ROUNDING * square
        # 0 and not 1 for a constant feature: it is left out of the equations.
        inverse = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        values, vectors = np.linalg.eigh(covariance * np.outer(inverse, inverse))
        # Rounding may leave an eigenvalue of 0 a little below it.
        values = np.maximum(values, 0)
        projected = vectors.T @ (shared * inverse[:, None])
        readouts = []
        for penalty in penalties:
            standardised = vectors @ (projected / (values + penalty)[:, None])
            coefficients = standardised * inverse[:, None]
            readouts.append(Readout(coefficients, y - x @ coefficients, penalty))
        return readouts


class Window(NamedTuple):
    """A part of a case, as large as the config's crop.

    Attributes:
      case: its number among the cases.
      image: [*W, C] float32, continued by its mirror image.
      label: [*W], `OUTSIDE` beyond the image and where another window has the voxel.
    """

    case: int
    image: np.ndarray
    label: np.ndarray


def windows(
    config: ml_collections.ConfigDict, dataset: store.Dataset, cases: Iterable[store.Case]
) -> Iterator[Window]:
    """Windows that hold every labelled voxel once; for a 2D config those of all slices."""
    size = tuple(config.data.crop)
    for number, case in enumerate(cases):
        parts = [(store.load_image(dataset, case), store.load_label(dataset, case))]
        if config.rank < dataset.rank:
            axis = config.data.slice_axis
            parts = zip(*(np.moveaxis(array, axis, 0) for array in parts[0]), strict=True)
        for image, label in parts:
            remaining = np.array(label)
            for begin in sliding_window.window_starts(label.shape, size, overlap=0):
                # As `inference.predict` places an image that is smaller than the window.
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


def draw(rng: np.random.Generator, label: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a window, of rare classes as many as of frequent ones where there are as many.

    Args:
      label: [*W].
      most: M.

    Returns:
      Voxels int [M, r], and for how many of its class each stands [M]; 0 for what fills up.
    """
    flat = label.ravel()
    classes, sizes = np.unique(flat[flat != OUTSIDE], return_counts=True)
    chosen, stands_for = np.zeros(most, np.int64), np.zeros(most)
    begin = 0
    # The rarest first: what it leaves of its share is for the others.
    for place, index in enumerate(np.argsort(sizes, kind="stable")):
        number = min(sizes[index], (most - begin) // (len(classes) - place))
        part = slice(begin, begin + number)
        chosen[part] = rng.choice(np.flatnonzero(flat == classes[index]), number, replace=False)
        stands_for[part] = sizes[index] / number
        begin += number
    return np.stack(np.unravel_index(chosen, label.shape), axis=-1), stands_for


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Voxels of each class [K] -> how much one of them counts: the root of the inverse frequency.

    Half way between voxels that count the same, where the background decides, and classes that do,
    where each is seen all around itself. On Task04, with 29 cases and an encoder of 200 steps, the
    two reach a validation Dice of 0.530 and 0.539, and half way is 0.557.
    """
    return np.where(counts > 0, np.sqrt(counts.max() / np.maximum(counts, 1)), 0.0)


def _strides(level: Sequence[int], full: Sequence[int]) -> np.ndarray:
    """How many voxels of `full` [r] one of `level` is wide: sizes are halved and rounded up."""
    strides = []
    for side, whole in zip(level, full, strict=True):
        stride = 1
        while -(-whole // stride) > side:
            stride *= 2
        strides.append(stride)
    return np.asarray(strides)


@jax.jit
def features_at(levels: Levels, voxels: Array) -> Array:
    """All levels at some voxels, interpolated linearly: voxels int [B, M, r] -> [B, M, E]."""
    full = levels[0].shape[1:-1]

    def interpolate(level: Array, voxels: Array) -> Array:
        sides = np.asarray(level.shape[:-1])
        place = (voxels + 0.5) / _strides(sides, full) - 0.5
        place = jnp.clip(place, 0, sides - 1)
        low = jnp.floor(place).astype(jnp.int32)
        high, part = jnp.minimum(low + 1, sides - 1), place - low
        total = 0.0
        for corner in itertools.product((False, True), repeat=len(full)):
            at = jnp.where(np.asarray(corner), high, low)
            weight = jnp.where(np.asarray(corner), part, 1 - part).prod(-1, keepdims=True)
            total += weight * level[tuple(jnp.moveaxis(at, -1, 0))]
        return total

    return jnp.concatenate([jax.vmap(interpolate)(level, voxels) for level in levels], axis=-1)


@jax.jit
def scores_of(levels: Levels, coefficients: Array, intercept: Array) -> Array:
    """The readout of every voxel: coefficients [E, K], intercept [K] -> [B, *S, K]."""
    full = levels[0].shape[1:-1]
    total, begin = intercept, 0
    for level in levels:
        own = coefficients[begin : begin + level.shape[-1]]
        begin += level.shape[-1]
        scores = jnp.matmul(level, own, precision="highest")
        sides = level.shape[1:-1] * _strides(level.shape[1:-1], full)
        shape = (scores.shape[0], *map(int, sides), scores.shape[-1])
        # An odd side was rounded up on the way down.
        total += jax.image.resize(scores, shape, "linear")[:, *(slice(0, n) for n in full)]
    return total


def fit_voxels(
    encode: Encode,
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
) -> list[Readout]:
    """The readouts of all penalties, strongest first. All encoders are shown the same voxels."""
    classes = len(dataset.classes)
    counts = sum(
        np.bincount(np.ravel(store.load_label(dataset, case)), minlength=classes) for case in cases
    )
    weights, targets = class_weights(counts), np.eye(classes)
    most = min(VOXELS, math.prod(config.data.crop))
    rng = np.random.default_rng(config.seed)
    equations = None
    for batch, levels in _encoded(encode, config, dataset, cases, "fitting"):
        drawn = [draw(rng, window.label, most) for window in batch]
        features = np.asarray(features_at(levels, np.stack([places for places, _ in drawn])))
        equations = equations or NormalEquations(features.shape[-1], classes)
        for window, x, (places, stands_for) in zip(batch, features, drawn, strict=True):
            label = window.label[tuple(places.T)]
            label = np.where(stands_for > 0, label, 0)
            equations.add(x, targets[label], stands_for * weights[label])
    return equations.solve()


def foreground_counts(
    scores: np.ndarray, label: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels answered with each foreground class, at every threshold at once.

    A voxel is foreground where its best foreground class exceeds the background by more than that.

    Args:
      scores: [V, K].
      label: int [V].
      thresholds: [T], ascending.

    Returns:
      How many of the answers are right, and how many there are: [T, K - 1] each.
    """
    best = scores[:, 1:].argmax(-1)
    margin = scores[:, 1:].max(-1) - scores[:, 0]
    # The thresholds below a margin are the first ones.
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
    """The readout and threshold of the best mean foreground Dice on `cases`, and that Dice.

    Raises:
      UserError: none of the cases has any foreground.
    """
    classes = len(dataset.classes)
    right = np.zeros((len(cases), len(readouts), len(THRESHOLDS), classes - 1))
    answered, truth = np.zeros_like(right), np.zeros((len(cases), classes - 1))
    for batch, levels in _encoded(encode, config, dataset, cases, "choosing"):
        inside = [window.label != OUTSIDE for window in batch]
        labels = [window.label[mask] for window, mask in zip(batch, inside, strict=True)]
        for window, label in zip(batch, labels, strict=True):
            truth[window.case] += np.bincount(label, minlength=classes)[1:]
        for number, readout in enumerate(readouts):
            scores = np.asarray(scores_of(levels, *readout.on_device()))
            for window, own, mask, label in zip(batch, scores, inside, labels, strict=True):
                counts = foreground_counts(own[mask], label, THRESHOLDS)
                right[window.case, number] += counts[0]
                answered[window.case, number] += counts[1]
    some = truth.any(-1)
    if not some.any():
        raise UserError(f"{dataset.path}: no case of the split val has any foreground to decide by")
    present = (truth > 0)[:, None, None]
    dice = np.where(present, 2 * right / np.maximum(answered + truth[:, None, None], 1), 0)
    dice = (dice.sum(-1)[some] / present.sum(-1)[some]).mean(0)
    number, threshold = np.unravel_index(dice.argmax(), dice.shape)
    return readouts[number], float(THRESHOLDS[threshold]), float(dice.max())
