"""Is a method better than scratch, and is it faster? Said with intervals, and in words.

A score varies with the repetition (its label subset, its initial weights) and with the subjects
that happen to be the test set. The first variance is taken from the repetitions, the second from
resampling the subjects; both together give a Student's t, whose degrees of freedom are
Satterthwaite's. Differences to scratch are paired: of the same repetitions, with the same
subjects drawn. Over the methods that are compared at one amount of labels p-values are corrected by
Holm's step-down procedure, and the intervals are of the level at which Holm's procedure judges
them.

Resampling the repetitions too would look alike and be wrong: of three things it finds a variance a
third too small, and no tails. Where repetitions differ more than subjects do, it would call 19 % of
the differences that are none significant at the level of 5 %; what is done here 7 to 10 %, and of
ten repetitions 5 %. With Holm's levels the tails count: of ten methods that are all like scratch,
one or more is called different in 41 % of studies of two such repetitions, in 20 % of three, in 5 %
of ten. Where the noise of single cases is all there is, it counts in both variances, and the
intervals are up to 1.4 times as wide as they might be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ssl3d import metrics

DRAWS = 10_000
ALPHA = 0.05
# Convergence: steps until this share of scratch's final validation score is reached.
SHARE = 0.95
# By simulation, where repetitions differ more than subjects do.
FEW_REPETITIONS = (
    "few repetitions tell little of how repetitions vary: where they differ much, a study of ten "
    "methods that are all like scratch finds one or more of them different in 20 % of "
    "studies of three repetitions, in 41 % of two and, as it should, in 5 % of ten"
)
# Draws weighed together, to bound the memory.
_BLOCK = 500

# What a repetition scored: weights of the cases [D, M] -> scores [D].
Score = Callable[[np.ndarray], np.ndarray]


def mean_score(values: np.ndarray) -> Score:
    """The mean over cases; those that are NaN count for nothing. values: [M]."""
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)

    def score(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return weights @ filled / (weights @ defined)

    return score


def kappa_score(grades: np.ndarray, predicted: np.ndarray, classes: int) -> Score:
    """The quadratic weighted kappa. grades, predicted: int [M]."""

    def score(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return metrics.quadratic_kappa(grades, predicted, classes, weights)

    return score


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method against scratch.

    Attributes:
      difference: method minus scratch, mean over repetitions.
      low, high: 95 % interval.
      p: two-sided.
      p_holm: corrected for the number of methods.
      low_holm, high_holm: interval of the level at which Holm's procedure judges.
      repetitions: that both have.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    low_holm: float
    high_holm: float
    repetitions: int

    def shown(self) -> int:
        """1 for a gain, -1 for a loss, 0 for neither.

        A single repetition shows nothing of a method: its label subset may be a lucky one.
        """
        if self.p_holm > ALPHA or self.repetitions < 2:
            return 0
        return 1 if self.difference > 0 else -1

    def verdict(self) -> str:
        """In words, for people."""
        word = {1: "gain", 0: "no gain shown", -1: "loss"}[self.shown()]
        span = f"{self.difference:+.3f} [{self.low_holm:+.3f}, {self.high_holm:+.3f}]"
        p = "< 0.001" if self.p_holm < 0.001 else f"= {self.p_holm:.3g}"
        text = f"{word}: {span}, corrected p {p}"
        if self.repetitions < 2:
            text += "; a single repetition, whose label subset may be a lucky one, shows none"
        return text


def case_draws(subjects: Sequence[str], draws: int, random: np.random.Generator) -> np.ndarray:
    """How often each case is drawn when subjects are drawn with replacement: [draws, M]."""
    _, of_subject = np.unique(np.asarray(subjects), return_inverse=True)
    size = of_subject.max() + 1
    counts = random.multinomial(size, np.full(size, 1 / size), draws)
    return counts[:, of_subject].astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two.

    Attributes:
      value: the mean over repetitions, of all subjects.
      error: its standard error.
      freedom: the degrees of freedom of Student's t.
    """

    value: float
    error: float
    freedom: float

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """The central 1 - alpha."""
        low, high = _central(self.value, self.error, self.freedom, alpha)
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Two-sided, of the hypothesis that the value is zero."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))


def paired(
    method: Sequence[Score], scratch: Sequence[Score] | None, weights: np.ndarray
) -> np.ndarray:
    """A method's scores, or their differences to scratch's: weights [D, M] -> [D, R]."""
    own = np.stack([score(weights) for score in method], axis=1)
    if scratch is None:
        return own
    return own - np.stack([score(weights) for score in scratch], axis=1)


def estimate(
    method: Sequence[Score],
    scratch: Sequence[Score] | None,
    subjects: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate | None:
    """A method's score, or its difference to scratch.

    None where it is undefined in a repetition, or where there is nothing to tell its error by.

    Args:
      method, scratch: of the same repetitions in the same order.
      subjects: of the cases, in the scores' order.
      seed: the same one gives all methods the same draws.
    """
    whole = paired(method, scratch, np.ones((1, len(subjects))))[0]
    if np.isnan(whole).any():
        return None
    # Each the square of a standard error, and the degrees of freedom it is known with. Of a single
    # repetition the first is not known, nor the second of a single subject.
    count, tested = len(whole), len(set(subjects))
    parts = []
    if count > 1:
        parts.append((whole.var(ddof=1) / count, count - 1))
    if tested > 1:
        random = np.random.default_rng(seed)
        # A draw of cases that have no score is NaN, and left out.
        resampled = np.concatenate(
            [
                paired(
                    method, scratch, case_draws(subjects, min(_BLOCK, draws - start), random)
                ).mean(1)
                for start in range(0, draws, _BLOCK)
            ]
        )
        # Drawing M of M subjects makes a variance that is (M - 1) / M of what it should be.
        parts.append((np.nanvar(resampled) * tested / (tested - 1), tested - 1))
    if not parts:
        return None
    square = sum(part for part, _ in parts)
    if square == 0:
        return Estimate(float(whole.mean()), 0.0, np.inf)
    freedom = square**2 / sum(part**2 / known for part, known in parts)
    return Estimate(float(whole.mean()), float(np.sqrt(square)), float(freedom))


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Holm's step-down correction.

    Returns:
      The corrected p-values, and for each the level alpha / k at which the procedure judges it.
      It goes no further after the first that it does not reject: the level of that one holds for
      those after it too, or an interval of theirs could exclude zero beside the word "no gain".
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    corrected, levels, highest, level = [0.0] * count, [0.0] * count, 0.0, ALPHA
    for rank, i in enumerate(order):
        if highest <= ALPHA:
            level = ALPHA / (count - rank)
        highest = max(highest, min(1.0, (count - rank) * p_values[i]))
        corrected[i], levels[i] = highest, level
    return corrected, levels


def compare(
    methods: Mapping[object, tuple[Sequence[Score], Sequence[Score]]],
    subjects: Sequence[str],
    draws: int = DRAWS,
) -> dict[object, Comparison]:
    """Each method against scratch, corrected for their number.

    Args:
      methods: name -> (its scores, scratch's), of the repetitions that both have.
      subjects: of the test cases.
    """
    estimates = {
        name: found
        for name, (own, scratch) in methods.items()
        if (found := estimate(own, scratch, subjects, draws))
    }
    corrected, levels = holm([found.p for found in estimates.values()])
    return {
        name: Comparison(
            found.value,
            *found.interval(),
            found.p,
            p,
            *found.interval(level),
            len(methods[name][0]),
        )
        for (name, found), p, level in zip(estimates.items(), corrected, levels, strict=True)
    }


def steps_to_reach(curve: Sequence[tuple[int, float]], score: float) -> float:
    """The first validated step at which a curve is at `score` or above; infinity if it is never."""
    return next((float(step) for step, value in sorted(curve) if value >= score), np.inf)


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over repetitions, by Student's t: [R, T] -> [T], [T].

    Of a few repetitions this is wide, as it should be; of a single one there is none (NaN).
    """
    count = len(values)
    mean = values.mean(0)
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    return _central(mean, values.std(0, ddof=1) / np.sqrt(count), count - 1, ALPHA)


def _central(value: Any, error: Any, freedom: float, alpha: float) -> tuple[Any, Any]:
    """The central 1 - alpha of Student's t, of numbers or arrays alike."""
    half = stats.t.ppf(1 - alpha / 2, freedom) * error
    return value - half, value + half
