"""Is a method better than scratch, and is it faster? Said with intervals, and in words.

The difference between a method and scratch is resampled hierarchically: repetitions (their label
subsets and initial weights) with replacement, and the test set's subjects with replacement, both
paired: a draw takes the same repetitions and the same subjects of either method. Over the methods
that are compared at one amount of labels p-values are corrected by Holm's step-down procedure, and
the intervals are of the level at which Holm's procedure judges them.

Three repetitions tell little of how repetitions vary: resampling three things finds a variance a
third too small. The intervals are the more trustworthy the more the cases, and not the
repetitions, make the difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from ssl3d import metrics

DRAWS = 10_000
ALPHA = 0.05
# Convergence: steps until this share of scratch's final validation score is reached.
SHARE = 0.95
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
      p: two-sided, of the bootstrap.
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
        text = f"{word}: {span}, corrected p = {self.p_holm:.3g}"
        if self.repetitions < 2:
            text += "; a single repetition, whose label subset may be a lucky one, shows none"
        return text


def case_draws(subjects: Sequence[str], draws: int, random: np.random.Generator) -> np.ndarray:
    """How often each case is drawn when subjects are drawn with replacement: [draws, M]."""
    _, of_subject = np.unique(np.asarray(subjects), return_inverse=True)
    return _counts(of_subject.max() + 1, draws, random)[:, of_subject]


def _counts(size: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Draws of `size` of `size` things with replacement, as how often each comes: [draws, size]."""
    return random.multinomial(size, np.full(size, 1 / size), draws).astype(np.float64)


def resample(
    method: Sequence[Score],
    scratch: Sequence[Score] | None,
    subjects: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """The hierarchical bootstrap of a method's score, or of its difference to scratch: [draws].

    Args:
      method, scratch: of the same repetitions in the same order.
      subjects: of the cases, in the scores' order.
      seed: the same one gives all methods the same draws.
    """
    random = np.random.default_rng(seed)
    blocks = []
    for start in range(0, draws, _BLOCK):
        count = min(_BLOCK, draws - start)
        repetitions = _counts(len(method), count, random)
        cases = case_draws(subjects, count, random)
        # One case of none in a draw leaves that repetition undefined: NaN, and left out.
        scores = np.stack([score(cases) for score in method], axis=1)
        if scratch is not None:
            scores = scores - np.stack([score(cases) for score in scratch], axis=1)
        blocks.append((repetitions * scores).sum(1) / len(method))
    values = np.concatenate(blocks)
    return values[~np.isnan(values)]


def point(scores: Sequence[Score], size: int) -> float:
    """The mean over repetitions of the scores of all cases, each once."""
    return float(np.mean([score(np.ones((1, size)))[0] for score in scores]))


def interval(values: np.ndarray, alpha: float = ALPHA) -> tuple[float, float]:
    """The central 1 - alpha of a bootstrap distribution."""
    low, high = np.quantile(values, (alpha / 2, 1 - alpha / 2))
    return float(low), float(high)


def p_value(values: np.ndarray) -> float:
    """Two-sided, of the hypothesis that the bootstrapped difference is zero."""
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(values) + 1)))


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
    samples = {
        name: resample(own, scratch, subjects, draws) for name, (own, scratch) in methods.items()
    }
    usable = {name: sample for name, sample in samples.items() if len(sample)}
    corrected, levels = holm([p_value(sample) for sample in usable.values()])
    result = {}
    for (name, sample), p, level in zip(usable.items(), corrected, levels, strict=True):
        own, scratch = methods[name]
        size = len(subjects)
        result[name] = Comparison(
            point(own, size) - point(scratch, size),
            *interval(sample),
            p_value(sample),
            p,
            *interval(sample, level),
            len(own),
        )
    return result


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
    half = stats.t.ppf(0.975, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return mean - half, mean + half
