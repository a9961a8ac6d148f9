"""Statistics of a method against scratch: paired differences, intervals, Holm's correction.

A difference d_r is paired by repetition r (label subset, initial weights) and by test subject. It
varies with the pretrained encoder, the split, the repetition and the test subjects. Repetitions of
one encoder, or on one split, are no independent replications of it: the unit of replication is the
split where there are several, else the encoder, else the repetition; where several splits share
fewer encoders, pretrained on other data, it is the encoder. With U units, of means D_u, over M test
subjects,

    D = mean_u D_u,   SE^2 = var_u(D_u) / U + M / (M - 1) * var*(D)

where var_u has U - 1 in its denominator and var* is over resamplings of the subjects, in all
repetitions at once: a subject that several splits test ties them (Nadeau and Bengio 2003, Machine
Learning 52, on why their naive variance is too small). D / SE is compared with Student's t of
Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2), of U - 1 and M - 1. Means of
clusters as units: Hayes and Moulton 2017, Cluster Randomised Trials, chapter 10.

With a single encoder its variance is unknown, and no part of the interval: it is that of this
encoder.

Resampling the repetitions as well would look similar and be wrong: with three repetitions it
underestimates the variance by a third and ignores the tails. Where repetitions differ more than
subjects, it would call 19 % of null differences significant at the 5 % level; this estimator calls
7 to 10 %, and 5 % with ten repetitions. With Holm's levels the tails matter: with ten methods, all
equivalent to scratch, one or more is called different in 41 % of studies of two such repetitions,
20 % of three and 5 % of ten. Where single cases are the only noise, it counts in both variances,
and intervals are up to 1.4 times wider than necessary.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ssl3d import metrics
from ssl3d.intervals import PerDraw

DRAWS = 10_000
ALPHA = 0.05
# Convergence: steps until this share of scratch's final validation score is reached.
SHARE = 0.95
# Resamplings weighted at once, which bounds the memory.
_BLOCK = 500

# The score of a repetition: weights of the cases [D, M] -> scores [D].
Score = Callable[[np.ndarray], PerDraw]
Scores = Collection[Score]


def mean_score(values: np.ndarray) -> Score:
    """The mean over cases [M], NaN ones ignored."""
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)

    def score(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return weights @ filled / (weights @ defined)

    return score


def kappa_score(
    grades: np.ndarray,
    predicted: np.ndarray,
    classes: int,
    subject: np.ndarray | None = None,
    subjects: int = 0,
) -> Score:
    """The quadratic weighted kappa of int grades and predictions [M].

    Args:
      subject: int [M], which weight holds for a case; without it, each case has its own.
      subjects: number of weights, if some hold for no case.
    """
    subject = np.arange(len(grades)) if subject is None else subject
    # How often each pair of grade and prediction occurs: whole numbers, whose sums are exact.
    pairs, pair = np.unique(np.stack([grades, predicted]), axis=1, return_inverse=True)
    grades, predicted = pairs
    counts = np.zeros((subjects or len(np.unique(subject)), len(grades)))
    np.add.at(counts, (subject, pair), 1)

    def score(weights: np.ndarray) -> PerDraw:
        with np.errstate(invalid="ignore", divide="ignore"):
            return metrics.quadratic_kappa(grades, predicted, classes, weights @ counts)

    return score


class Estimate(NamedTuple):
    """A score, or a difference of two; numbers, or arrays of several."""

    value: Any  # mean over repetitions, of all subjects
    error: Any  # its standard error
    freedom: float  # degrees of freedom of Student's t

    def interval(self, alpha: float = ALPHA) -> tuple[Any, Any]:
        """The central 1 - alpha."""
        half = stats.t.ppf(1 - alpha / 2, self.freedom) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, for the hypothesis that the value is zero."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))


class Pair(NamedTuple):
    """A method's scores and scratch's, of the same repetitions in the same order."""

    against: str  # name of the scratch
    own: Scores
    scratch: Scores
    units: Sequence[Any] | None = None  # of replication, see `estimate`


class Comparison(NamedTuple):
    """A method against scratch."""

    estimate: Estimate  # method minus scratch
    p_holm: float  # its p, corrected for the number of methods
    level: float  # at which Holm's procedure judges it
    repetitions: int  # of those that both have
    against: str = ""  # name of the scratch
    units: int = 0  # of replication
    pending: str = ""  # why there is no verdict, if so

    @property
    def difference(self) -> float:
        return self.estimate.value

    @property
    def interval(self) -> tuple[float, float]:
        """At Holm's level."""
        return self.estimate.interval(self.level)

    def shown(self) -> int:
        """1 for a gain, -1 for a loss, 0 for neither, as a single repetition always shows."""
        if self.p_holm > ALPHA or self.repetitions < 2 or self.pending:
            return 0
        return 1 if self.difference > 0 else -1

    @property
    def word(self) -> str:
        return self.pending or {1: "gain", 0: "no gain shown", -1: "loss"}[self.shown()]

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies within the margin on either side of zero."""
        low, high = self.interval
        return self.repetitions > 1 and -margin < low and high < margin

    @property
    def effect(self) -> str:
        return "{:+.3f} [{:+.3f}, {:+.3f}]".format(self.difference, *self.interval)

    def verdict(self) -> str:
        """The verdict in a sentence."""
        p = "< 0.001" if self.p_holm < 0.001 else f"= {self.p_holm:.3g}"
        text = f"{self.word}: {self.effect}, corrected p {p}"
        if self.repetitions < 2:
            text += "; a single repetition, whose label subset may be a lucky one, shows none"
        return text


def estimate(
    method: Scores,
    scratch: Scores | None,
    subjects: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
    units: Sequence[Any] | None = None,
) -> Estimate | None:
    """A method's score, or its difference to scratch; None where that or its error is undefined.

    Args:
      method, scratch: the same repetitions in the same order.
      subjects: of the cases, in the order of the scores.
      units: the unit of replication of each repetition; by default each is its own.
      seed: with the same one, all methods see the same resamplings.
    """

    names = np.arange(len(method)) if units is None else np.asarray(units)
    member = names[:, None] == np.unique(names)
    share = member / member.sum(0)  # [R, U]

    def paired(weights: np.ndarray) -> np.ndarray:  # [D, M] -> [D, U]
        own = np.stack([score(weights) for score in method], axis=1)
        if scratch is not None:
            own = own - np.stack([score(weights) for score in scratch], axis=1)
        return own @ share

    whole = paired(np.ones((1, len(subjects))))[0]
    if np.isnan(whole).any():
        return None
    # Squared standard errors with their degrees of freedom. A single unit does not tell the first,
    # nor a single subject the second.
    people, of_subject = np.unique(np.asarray(subjects), return_inverse=True)
    count, tested = len(whole), len(people)
    parts = []
    if count > 1:
        parts.append((whole.var(ddof=1) / count, count - 1))
    if tested > 1:
        counts = _resampled(tested, draws, seed)
        means = [
            paired(counts[start : start + _BLOCK, of_subject].astype(float)).mean(1)
            for start in range(0, draws, _BLOCK)
        ]
        # A resampling without any defined score is NaN, and ignored. Resampling M of M subjects
        # has (M - 1) / M of the variance.
        variance = np.nanvar(np.concatenate(means)) * tested / (tested - 1)
        parts.append((variance, tested - 1))
    if not parts:
        return None
    square = sum(part for part, _ in parts)
    if square == 0:
        return Estimate(float(whole.mean()), 0.0, np.inf)
    freedom = square**2 / sum(part**2 / known for part, known in parts)
    return Estimate(float(whole.mean()), float(np.sqrt(square)), float(freedom))


@functools.lru_cache(maxsize=1)  # the methods of a study share their test subjects
def _resampled(subjects: int, draws: int, seed: int) -> np.ndarray:
    """How often each subject counts when they are resampled with replacement: [D, M]."""
    random, even = np.random.default_rng(seed), np.full(subjects, 1 / subjects)
    return random.multinomial(subjects, even, draws).astype(np.min_scalar_type(subjects))


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """p-values corrected by Holm's step-down procedure, and the level alpha / k it judges each at.

    It ends at the first hypothesis it does not reject, whose level holds for the later ones too:
    otherwise one of their intervals could exclude zero beside "no gain shown".
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
    methods: Mapping[Any, Pair], subjects: Sequence[str], draws: int = DRAWS
) -> dict[Any, Comparison]:
    """Each method of a family against scratch, corrected for the number of methods.

    Those without a common repetition are left out.
    """
    estimates = {
        name: found
        for name, pair in methods.items()
        if len(pair.own)
        and (found := estimate(pair.own, pair.scratch, subjects, draws, units=pair.units))
    }
    corrected, levels = holm([found.p for found in estimates.values()])
    judged: dict[Any, Comparison] = {}
    for (name, value), p, level in zip(estimates.items(), corrected, levels, strict=True):
        pair, count = methods[name], len(methods[name].own)
        units = count if pair.units is None else len(set(pair.units))
        judged[name] = Comparison(value, p, level, count, pair.against, units)
    return judged


def steps_to_reach(curve: Iterable[tuple[Any, float]], score: float) -> float:
    """The first validated step with a score of at least `score`; infinity if there is none."""
    return next((float(step) for step, value in sorted(curve) if value >= score), np.inf)


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over repetitions, [R, T] -> [T], [T]; NaN for a single one."""
    freedom = len(values) - 1
    error = values.std(0) / max(freedom, 1) ** 0.5
    return Estimate(values.mean(0), error, freedom).interval()
