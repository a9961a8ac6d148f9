"""How sharp images are along each axis, from the correlation of neighbouring voxels.

Thick slices that were resampled are smoother along one axis than along the others, and tell a
network which axis is which. Here sharpness is the width of the Gaussian that would give white noise
the same correlation between neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def neighbour_correlation(image: np.ndarray) -> np.ndarray:
    """Correlation of neighbouring voxels along each axis: [*S, C] -> float [r].

    Means over channels; an axis of one voxel, and a constant image, have none (NaN).
    """
    values = np.asarray(image, np.float32)
    values = values - values.mean(axis=tuple(range(values.ndim - 1)), keepdims=True)
    variance = float(np.square(values).mean())
    if variance == 0:
        return np.full(values.ndim - 1, np.nan)
    return np.array(
        [
            1 - float(np.square(np.diff(values, axis=axis)).mean()) / (2 * variance)
            if values.shape[axis] > 1
            else np.nan
            for axis in range(values.ndim - 1)
        ]
    )


def blur_of(correlation: np.ndarray) -> np.ndarray:
    """Standard deviation, in voxels, of the Gaussian that correlates white noise as much.

    White noise convolved with a Gaussian of deviation s has the correlation exp(-1 / (4 s^2))
    between neighbours.
    """
    clipped = np.clip(correlation, 1e-6, 1 - 1e-6)
    return np.sqrt(-1 / (4 * np.log(clipped)))


def blur_per_axis(images: Iterable[np.ndarray]) -> np.ndarray:
    """The blur of a collection along each axis, in voxels: of the mean correlation, float [r].

    Zero where nothing is known.
    """
    correlations = np.stack([neighbour_correlation(image) for image in images])
    known = np.isfinite(correlations)
    total = np.where(known, correlations, 0).sum(0)
    mean = total / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), blur_of(mean), 0.0)
