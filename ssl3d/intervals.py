"""Ratios of sums, and bootstrap intervals over subjects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

# A statistic's value for each of R rows of weights; a number for a single row.
PerDraw = Float[np.ndarray, "*R"] | np.floating


class Interval(TypedDict):
    """A score with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


BOOTSTRAP_DRAWS = 2000
# Draws evaluated together: bounds the memory to this many times the number of cases.
_BLOCK = 100


def ratio(total: np.ndarray, count: np.ndarray) -> float:
    """sum(total) / sum(count); NaN if there is nothing to count."""
    whole = float(np.sum(count))
    return float(np.sum(total)) / whole if whole > 0 else math.nan


def ratio_interval(
    sums: Real[np.ndarray, " M"],
    counts: Real[np.ndarray, " M"],
    units: Shaped[np.ndarray, " M"],
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % bootstrap interval of sum(sums) / sum(counts) over units.

    With a single unit, the ratio itself as both ends.
    """

    def weighted(weights: Float[np.ndarray, "*R M"]) -> PerDraw:
        return weights @ sums / np.maximum(weights @ counts, 1e-12)

    if np.unique(units).size == 1:
        value = float(weighted(np.ones(len(sums))))
        return value, value
    return bootstrap_interval(weighted, units, seed)


def bootstrap_interval(
    statistic: Callable[[Float[np.ndarray, "R B"]], PerDraw],
    units: Shaped[np.ndarray, " B"],
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic over units resampled with replacement.

    Args:
      statistic: of weights, how often each of R draws holds each case.
      units: what is resampled: the subject of each case, or its own number.
      seed: of the draws.

    Returns:
      Low and high; NaN for fewer than two units. Draws with a NaN statistic are left out.
    """
    names, members = np.unique(units, return_inverse=True)
    if names.size < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    blocks = (_draw(rng, names.size) for _ in range(BOOTSTRAP_DRAWS // _BLOCK))
    values = np.concatenate([statistic(times[:, members].astype(float)) for times in blocks])
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _draw(rng: np.random.Generator, units: int) -> Int[np.ndarray, "R {units}"]:
    """How often each of `_BLOCK` draws with replacement holds each unit."""
    drawn = rng.integers(0, units, (_BLOCK, units))
    cells = drawn + units * np.arange(_BLOCK)[:, None]
    return np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape)
