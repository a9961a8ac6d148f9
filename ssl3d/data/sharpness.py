"""How sharp images are along each axis, from the correlation of neighbouring voxels.

Thick slices that were resampled are smoother along one axis than along the others, and tell a
network which axis is which. Here sharpness is the width of the Gaussian that would give white noise
the same correlation between neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import optimize

from ssl3d import augment

# Voxels per axis that are measured of a large image.
_MEASURED_SIDE = 64


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


def evening(images: Sequence[np.ndarray], axes: Sequence[int]) -> np.ndarray:
    """Variances, in voxels^2, that make `axes` equally sharp when they are smoothed: float [r].

    As `augment.blur` smooths: the bluntest of the axes stays, the others come to correlate their
    neighbours as much as it does.

    Args:
      images: [*S, C] each; of large ones the middle is measured.
    """
    images = [_middle(image) for image in images]
    mean = np.nanmean([neighbour_correlation(image) for image in images], axis=0)
    variances = np.zeros(len(mean))
    if not np.isfinite(mean[list(axes)]).all():
        return variances
    target = mean[list(axes)].max()
    for axis in axes:
        # Smoothing may take a quarter of the smallest image on either side, and no more.
        most = 0.5 * (min(image.shape[axis] for image in images) // 4)

        def lack(variance: float, axis: int = axis) -> float:
            return _smoothed(images, axis, variance) - target

        if lack(0.0) < 0:
            variances[axis] = (
                optimize.brentq(lack, 0.0, most, xtol=1e-3) if lack(most) > 0 else most
            )
    return variances


def _middle(image: np.ndarray) -> np.ndarray:
    starts = [max(side - _MEASURED_SIDE, 0) // 2 for side in image.shape[:-1]]
    inner = tuple(slice(start, start + _MEASURED_SIDE) for start in starts)
    return np.asarray(image[inner], np.float32)


def _smoothed(images: Sequence[np.ndarray], axis: int, variance: float) -> float:
    """The mean neighbour correlation along `axis` after smoothing along it."""
    smooth = [augment.blur_axis(image, axis, variance) for image in images]
    return float(np.nanmean([neighbour_correlation(image)[axis] for image in smooth]))
