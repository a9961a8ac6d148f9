"""Sliding-window prediction of an image of any size, rank-free, in bounded memory.

Windows are read one batch at a time, so the image may be a memory map larger than memory. Memory
holds the sum of the weighted outputs, [*S, K], and the windows of two batches.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jax import Array

from ssl3d.errors import UserError

T = TypeVar("T")

# The least weight of a voxel in a window, relative to the largest.
_FLOOR = 1e-3


def window_starts(
    shape: Sequence[int], window: Sequence[int], overlap: float
) -> list[tuple[int, ...]]:
    """First voxels of the windows: evenly spaced, the last one flush with the image's end.

    Neighbours share at least `overlap` of their length. Along an axis where the image is no larger
    than the window there is one window, at 0.

    Raises:
      UserError: `overlap` is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise UserError(f"overlap={overlap}: must be at least 0 and below 1, 0.5 is usual")
    along_axes = []
    for side, length in zip(shape, window, strict=True):
        step = max(length - math.ceil(length * overlap), 1)
        last = max(side - length, 0)
        steps = math.ceil(last / step)
        along_axes.append([last * i // max(steps, 1) for i in range(steps + 1)])
    return list(itertools.product(*along_axes))


def gaussian(window: Sequence[int]) -> np.ndarray:
    """Weights [*window], float32: predictions are best in the middle, with context all around.

    Sigma is an eighth of the window, as in nnU-Net. A corner is 4 sigma away along every axis: in
    3D its weight of e^-24 would leave the image's corners, which one window covers, to rounding.
    No weight is therefore below `_FLOOR` of the largest, as in MONAI.
    """
    profiles = []
    for length in window:
        sigmas = (np.arange(length) - (length - 1) / 2) / (length / 8)
        profiles.append(np.exp(-(sigmas**2) / 2))
    weights = functools.reduce(np.multiply.outer, profiles)
    return np.maximum(weights, _FLOOR * weights.max()).astype(np.float32)


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All 2^n subsets of n axes to mirror, the empty one first."""
    return [some for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]


def predict(
    forward: Callable[[np.ndarray], Array],
    image: np.ndarray,
    window: Sequence[int],
    overlap: float,
    batch: int,
    mirror: Sequence[int] = (),
) -> np.ndarray:
    """Gaussian-weighted mean of the outputs of all windows, [*S, K] float32.

    Args:
      forward: [B, *window, C] float32 -> [B, *window, K], e.g. probabilities. If jitted, it
        compiles at most `batch` times: B is `batch`, or the number of windows if that is smaller;
        repeated windows that fill up the last batch are ignored.
      image: [*S, C], e.g. a float16 memory map. An image smaller than the window is centred and
        padded by reflection.
      window: voxels.
      overlap: of neighbouring windows, as a fraction of the window, in [0, 1).
      mirror: spatial axes; averages over all 2^len(mirror) ways to flip them (test-time
        augmentation).

    Raises:
      UserError: `overlap` is not in [0, 1).
    """
    shape = image.shape[:-1]
    views = list(itertools.product(window_starts(shape, window, overlap), flips(mirror)))
    # In some data sets most images need one window: a full batch would be wasted work.
    batch = min(batch, len(views))
    groups = [views[first : first + batch] for first in range(0, len(views), batch)]

    def run(group: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Array:
        full = group + group[-1:] * (batch - len(group))
        return forward(np.stack([np.flip(_read(image, at, window), axes) for at, axes in full]))

    inner = _inner(shape, window)
    weights = gaussian(window)[inner][..., None]
    total: np.ndarray | None = None
    weight = np.zeros((*shape, 1), np.float32)
    for group, outputs in _one_ahead((group, run(group)) for group in groups):
        scores = np.asarray(outputs, np.float32)
        if total is None:
            total = np.zeros((*shape, scores.shape[-1]), np.float32)
        for (start, axes), output in zip(group, scores, strict=False):  # without the repeated ones
            box = _box(start, window)
            total[box] += weights * np.flip(output, axes)[inner]
            weight[box] += weights
    assert total is not None  # an image has at least one window
    return np.divide(total, weight, out=total)


def label_map(
    probabilities: np.ndarray, sigmoid_regions: Sequence[int] | None = None
) -> np.ndarray:
    """[*S, K] -> the class of each voxel, uint8 [*S].

    Args:
      sigmoid_regions: for channels that are regions with a sigmoid each: the class of a region
        where its probability exceeds 1/2, later regions overwriting earlier ones, e.g. (2, 1, 3)
        for whole tumour, tumour core, enhancing tumour. None: argmax over the channels.
    """
    if sigmoid_regions is None:
        # Slab by slab: argmax returns int64, eight times the size of the labels.
        return np.stack([slab.argmax(-1).astype(np.uint8) for slab in probabilities])
    labels = np.zeros(probabilities.shape[:-1], np.uint8)
    for channel, value in enumerate(sigmoid_regions):
        labels[probabilities[..., channel] > 0.5] = value
    return labels


def _box(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + length) for a, length in zip(start, window, strict=True))


def _inner(shape: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    """The part of a window inside the image: all of it unless the image is smaller."""
    lengths = [min(side, length) for side, length in zip(shape, window, strict=True)]
    return _box([(w - n) // 2 for w, n in zip(window, lengths, strict=True)], lengths)


def _read(image: np.ndarray, start: Sequence[int], window: Sequence[int]) -> np.ndarray:
    """The window [*window, C] float32 with the first voxel `start`."""
    inner = _inner(image.shape[:-1], window)
    margins = [(part.start, w - part.stop) for part, w in zip(inner, window, strict=True)]
    values = np.asarray(image[_box(start, window)], np.float32)
    return np.pad(values, [*margins, (0, 0)], mode="symmetric")


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after the next one is requested: the device computes while the host sums."""
    iterator = iter(items)
    waiting = next(iterator)
    for item in iterator:
        yield waiting
        waiting = item
    yield waiting
