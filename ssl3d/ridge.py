"""Ridge regression in closed form, from sums to which examples are added bit by bit.

    equations = NormalEquations(features=120, targets=3)
    equations.add(x, y, weights)      case by case: what is kept is E^2 numbers, float64
    readouts = equations.solve()      of every penalty, from one eigendecomposition

A readout minimises, over its coefficients W and its intercept b, the weighted mean over examples of
|y - b - z W|^2, plus penalty |W|^2, where z are the features standardised to mean 0 and variance 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The strongest first: where a choice is a tie, the first is taken. Features are standardised and
# the error is a mean, so the same grid suits any data: 1000 answers with the mean target, 1e-6
# is hardly a penalty, and what float64 sums round off is far below it.
PENALTIES = tuple(10.0**exponent for exponent in range(3, -7, -1))

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
        """Adds examples: features [N, E], targets [N, K], how much each counts [N], at least 0."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        weighted = x * weights[:, None]
        self._weight += weights.sum()
        self._x += weighted.sum(0)
        self._y += weights @ y
        self._xx += weighted.T @ x
        self._xy += weighted.T @ y

    def solve(self, penalties: Sequence[float] = PENALTIES) -> list[Readout]:
        """The readout of each penalty. A feature that never changes gets the coefficient 0.

        Raises:
          ValueError: no example that counts, or a feature that is not finite.
        """
        if not self._weight > 0 or not np.isfinite(self._xx).all():
            raise ValueError(f"examples of weight {self._weight}, or features that are not finite")
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
