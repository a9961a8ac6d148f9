"""From the rows of a study to what they say: scores, comparisons, convergence, plateau."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.analysis import statistics
from experiments.analysis.results_table import Record, Row, numbers
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D, Study, scratch_of

# Doubling scratch's steps may move its score by less than this at a plateau.
PLATEAU = 0.005


class Key(NamedTuple):
    """A row of the tables."""

    method: str
    mode: str


class Entry(NamedTuple):
    """A row of the tables at an amount of labels.

    Attributes:
      values: of the score of the whole test set, of each repetition.
      low, high: 95 % interval of their mean, over repetitions and subjects.
    """

    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


class Doubled(NamedTuple):
    """What doubling its steps adds to scratch.

    Attributes:
      repetitions: that have both.
      changes: of the score of each column, means over them.
      low, high: 95 % interval of the first column's; NaN of a single repetition.
    """

    repetitions: int
    changes: tuple[float, ...]
    low: float
    high: float

    @property
    def moved(self) -> bool:
        """Whether the first column's says that scratch is not at its plateau; not if undefined."""
        return abs(self.changes[0]) >= PLATEAU


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study has found.

    Attributes:
      rows: of the tables, in order; those with any finished cell.
      labels: amounts, in order; those with any finished cell.
      entries: of the first column, by row and amount.
      comparisons: likewise, with the scratch named in `against`.
      against: scratch2d of 2D methods on volumes where it was run; else, and of scratch2d, scratch.
      convergence: validated step at which 95 % of the final validation score of the scratch with
        the method's own network is reached, of each repetition (infinite: never).
      curves: (steps [T], scores [R, T]), likewise.
      plateau: what doubling its steps adds to scratch and to scratch2d, by that name and amount.
      beyond: the gains of `comparisons` again, against that scratch with twice the steps.
      sliced: rows of 2D networks on the slices of volumes.
      mixed: rows with training data drawn by another version of the code than that of the scratch
        that they are compared with.
    """

    rows: tuple[Key, ...]
    labels: tuple[str, ...]
    entries: dict[tuple[Key, str], Entry]
    comparisons: dict[tuple[Key, str], statistics.Comparison]
    against: dict[tuple[Key, str], str]
    convergence: dict[tuple[Key, str], tuple[float, ...]]
    curves: dict[tuple[Key, str], tuple[np.ndarray, np.ndarray]]
    plateau: dict[tuple[str, str], Doubled]
    beyond: dict[tuple[Key, str], statistics.Comparison]
    sliced: tuple[Key, ...]
    mixed: tuple[Key, ...]

    @property
    def repetitions(self) -> int:
        """The most that any row has."""
        return max(len(entry.values) for entry in self.entries.values())

    def label(self, key: Key) -> str:
        """As the tables call a row: with its mode where there are several."""
        modes = {row.mode for row in self.rows if not METHODS[row.method].mode}
        chosen = not METHODS[key.method].mode
        return f"{key.method}, {key.mode}" if chosen and len(modes) > 1 else key.method


def find(study: Study, record: Record, classes: int, draws: int = statistics.DRAWS) -> Findings:
    """Everything the report shows.

    Args:
      record: of the study's cells alone.
      classes: K of a classification.
    """
    rows_of: dict[tuple[Key, str], list[Row]] = {}
    for row in sorted(record.results, key=lambda row: int(row["repetition"])):
        rows_of.setdefault((Key(row["method"], row["mode"]), row["labels"]), []).append(row)
    present = {key for key, _ in rows_of}
    methods = [*study.methods, *METHODS]  # and those that were asked for beyond the study's
    order = sorted(present, key=lambda key: (methods.index(key.method), key.mode != "finetune"))
    amounts = sorted({amount for _, amount in rows_of}, key=lambda text: _size(rows_of, text))
    tables = _Cases(study, record, classes)
    entries, comparisons, against, plateau, beyond, mixed = {}, {}, {}, {}, {}, []
    for amount in amounts:
        pairs = {}
        for key in order:
            own = rows_of.get((key, amount))
            if not own:
                continue
            scores = [tables.score(row) for row in own]
            found = statistics.estimate(scores, None, tables.subjects, draws)
            low, high = found.interval() if found else (np.nan, np.nan)
            entries[key, amount] = Entry(tuple(numbers(own, study.columns[0].name)), low, high)
            name, both = _against(rows_of, key, amount, study.rank)
            if not both:
                continue
            if _draw_differently(both):
                mixed.append(key)
            if key.method in DOUBLES.values():  # p-values are not corrected for them
                plateau[name, amount] = _doubled(study, tables, both, draws)
                continue
            against[key, amount] = name
            pairs[key] = tables.pair(both)
        compared = statistics.compare(pairs, tables.subjects, draws)
        comparisons |= {(key, amount): comparison for key, comparison in compared.items()}
        gains = [key for key, comparison in compared.items() if comparison.shown() > 0]
        if not gains:
            continue
        # All methods, and not the gains alone: those are chosen by the same noise.
        doubled = {}
        for key in compared:
            double = rows_of.get((_random(DOUBLES[against[key, amount]]), amount), [])
            if both := _of_both(rows_of[key, amount], double):
                doubled[key] = tables.pair(both)
        again = statistics.compare(doubled, tables.subjects, draws)
        beyond |= {(key, amount): again[key] for key in gains if key in again}
    convergence, curves = _converge(study, record, rows_of)
    return Findings(
        tuple(order),
        tuple(amounts),
        entries,
        comparisons,
        against,
        convergence,
        curves,
        plateau,
        beyond,
        tuple(key for key in order if scratch_of(key.method, study.rank) == SCRATCH_2D),
        tuple(dict.fromkeys(mixed)),
    )


def _random(method: str) -> Key:
    return Key(method, "random")


def _against(
    rows_of: dict[tuple[Key, str], list[Row]], key: Key, amount: str, rank: int
) -> tuple[str, list[tuple[Row, Row]]]:
    """The scratch that a row is compared with, and the pairs of rows; none where it was not run."""
    own = scratch_of(key.method, rank)
    # What doubling its steps adds to one scratch the other cannot tell.
    choices = [own] if key.method in DOUBLES.values() else [own, SCRATCH]
    for name in choices:
        both = _of_both(rows_of[key, amount], rows_of.get((_random(name), amount), []))
        if both and name != key.method:
            return name, both
    return "", []


def _of_both(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of the repetitions that both have, side by side."""
    other = {row["repetition"]: row for row in others}
    return [(row, other[row["repetition"]]) for row in rows if row["repetition"] in other]


def _draw_differently(both: Sequence[tuple[Row, Row]]) -> bool:
    """Rows of before the versions were counted are of the first."""
    return any((row.get("draws") or "1") != (other.get("draws") or "1") for row, other in both)


def _doubled(study: Study, tables: _Cases, both: Sequence[tuple[Row, Row]], draws: int) -> Doubled:
    double, scratch = zip(*both, strict=True)
    changes = tuple(
        float(np.mean(np.subtract(numbers(double, name), numbers(scratch, name))))
        for name, _ in study.columns
    )
    found = statistics.estimate(*tables.pair(both), tables.subjects, draws)
    low, high = found.interval() if found and len(both) > 1 else (np.nan, np.nan)
    return Doubled(len(both), changes, low, high)


def _size(rows_of: dict[tuple[Key, str], list[Row]], amount: str) -> int:
    return next(int(rows[0]["training_cases"]) for (_, a), rows in rows_of.items() if a == amount)


class _Cases:
    """The test cases of each cell, in one order."""

    def __init__(self, study: Study, record: Record, classes: int) -> None:
        self._study, self._classes = study, classes
        self._rows: dict[str, dict[str, Row]] = {}
        for row in record.cases:
            self._rows.setdefault(row["cell"], {})[row["id"]] = row
        first = next(iter(self._rows.values()), {})
        self._ids = sorted(first)
        self.subjects = [first[name]["subject"] for name in self._ids]

    def pair(
        self, both: Sequence[tuple[Row, Row]]
    ) -> tuple[list[statistics.Score], list[statistics.Score]]:
        """The scores of a method and those of what it is compared with."""
        own, other = zip(*both, strict=True)
        return [self.score(row) for row in own], [self.score(row) for row in other]

    def score(self, result: Row) -> statistics.Score:
        rows = [self._rows[result["cell"]][name] for name in self._ids]
        column = self._study.columns[0]
        if column.of == "kappa":
            grades = np.array([int(row["grade"]) for row in rows])
            predicted = np.array([int(row["predicted"]) for row in rows])
            return statistics.kappa_score(grades, predicted, self._classes)
        return statistics.mean_score(np.array(numbers(rows, column.name)))


def _converge(
    study: Study, record: Record, rows_of: dict[tuple[Key, str], list[Row]]
) -> tuple[dict, dict]:
    curves_of: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(record.curves, key=lambda row: int(row["step"])):
        value = float(row["score"] or "nan")
        curves_of.setdefault(row["cell"], []).append((int(row["step"]), value))
    convergence, curves = {}, {}
    for (key, amount), rows in rows_of.items():
        # 2D networks are validated on slices: their curves compare with one another alone.
        reference = _random(scratch_of(key.method, study.rank))
        both = [
            (curves_of[row["cell"]], curves_of[other["cell"]])
            for row, other in _of_both(rows, rows_of.get((reference, amount), []))
            if row["cell"] in curves_of and other["cell"] in curves_of
        ]
        if both:
            convergence[key, amount] = tuple(
                statistics.steps_to_reach(curve, statistics.SHARE * other[-1][1])
                for curve, other in both
            )
        own = [curves_of[row["cell"]] for row in rows if row["cell"] in curves_of]
        curves[key, amount] = _stack(own)
    return convergence, {place: pair for place, pair in curves.items() if len(pair[0])}


def _stack(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves at the steps that all have: [T], [R, T]."""
    if not curves:
        return np.zeros(0), np.zeros((0, 0))
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    return np.array(steps), np.array([[dict(curve)[step] for step in steps] for curve in curves])
