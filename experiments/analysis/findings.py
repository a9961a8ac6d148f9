"""From the rows of a study to scores, comparisons, convergence and the plateau of scratch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.analysis import statistics
from experiments.analysis.results_table import Record
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D, Study, scratch_of

# At a plateau, doubling the steps of scratch moves its score by less than this.
PLATEAU = 0.005


class Key(NamedTuple):
    """A row of the tables."""

    method: str
    mode: str


# A row of the tables at an amount of labels.
Place = tuple[Key, str]


class Entry(NamedTuple):
    """The compared score at a place: of each repetition, and the 95 % interval of their mean."""

    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


class Doubled(NamedTuple):
    """The effect of doubled steps on scratch.

    Attributes:
      repetitions: number of those that have both.
      changes: mean change of each column.
      low, high: 95 % interval of the first column's change; NaN for a single repetition.
    """

    repetitions: int
    changes: tuple[float, ...]
    low: float
    high: float

    @property
    def moved(self) -> bool:
        """Whether scratch is not at its plateau in the first column; False if undefined."""
        return abs(self.changes[0]) >= PLATEAU

    @property
    def effect(self) -> str:
        """The change of the first column and its interval."""
        return f"{self.changes[0]:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings of a study, by place; the first column is the score compared.

    Attributes:
      runs: results.csv at each place, indexed by repetition.
      rows, labels: of the tables, in order.
      against: name of the scratch a method is compared with: scratch2d for 2D methods on volumes
        if it was run, else (and for scratch2d itself) scratch.
      comparisons: with that scratch.
      beyond: the gains among them again, against that scratch with twice the steps.
      plateau: of scratch and scratch2d, by name and amount of labels.
      convergence: for each repetition the validated step at which 95 % of the final validation
        score of scratch with the same network is reached; infinite if never.
      curves: (steps [T], scores [R, T]).
      mixed: rows whose training data were sampled by another version of the code than those of
        their scratch.
    """

    runs: Mapping[Place, pd.DataFrame]
    rows: tuple[Key, ...]
    labels: tuple[str, ...]
    rank: int
    entries: dict[Place, Entry] = dataclasses.field(default_factory=dict)
    against: dict[Place, str] = dataclasses.field(default_factory=dict)
    comparisons: dict[Place, statistics.Comparison] = dataclasses.field(default_factory=dict)
    beyond: dict[Place, statistics.Comparison] = dataclasses.field(default_factory=dict)
    plateau: dict[tuple[str, str], Doubled] = dataclasses.field(default_factory=dict)
    convergence: dict[Place, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    curves: dict[Place, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    mixed: list[Key] = dataclasses.field(default_factory=list)

    @property
    def repetitions(self) -> int:
        """The largest number of repetitions of any row."""
        return max(map(len, self.runs.values()))

    @property
    def sliced(self) -> bool:
        """Whether there are 2D networks on the slices of volumes."""
        return any(scratch_of(key.method, self.rank) == SCRATCH_2D for key in self.rows)

    def label(self, key: Key) -> str:
        """The name of a row: with its mode if the study has several."""
        modes = {row.mode for row in self.rows if not METHODS[row.method].mode}
        chosen = not METHODS[key.method].mode
        return f"{key.method}, {key.mode}" if chosen and len(modes) > 1 else key.method

    def values(self, key: Key, amount: str, name: str) -> list[float]:
        """A column of results.csv, by repetition; NaN where undefined, empty if not run."""
        rows = self.runs.get((key, amount), pd.DataFrame())
        return pd.to_numeric(rows.reindex(columns=[name])[name]).tolist()

    def both(self, place: Place, other: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows of a place and of a random initialisation, of their common repetitions."""
        own = self.runs[place]
        others = self.runs.get((Key(other, "random"), place[1]), own.iloc[:0])
        common = own.index.intersection(others.index)
        return own.loc[common], others.loc[common]


def find(study: Study, record: Record, classes: int, draws: int = statistics.DRAWS) -> Findings:
    """The findings of a record, which holds cells of the study alone.

    Args:
      classes: K of a classification.
      draws: number of resamplings of the test subjects.
    """
    facts = arrange(study, record)
    cases = Cases(study, record, classes)
    for amount in facts.labels:
        pairs = {}
        for key in facts.rows:
            place = key, amount
            if place not in facts.runs:
                continue
            found = statistics.estimate(
                cases.scores(facts.runs[place]), None, cases.subjects, draws
            )
            interval = found.interval() if found else (np.nan, np.nan)
            values = facts.values(key, amount, study.columns[0].name)
            facts.entries[place] = Entry(tuple(values), *interval)
            name, own, scratch = _against(facts, place)
            if own.empty:
                continue
            if (own["draws"] != scratch["draws"]).any() and key not in facts.mixed:
                facts.mixed.append(key)
            if key.method in DOUBLES.values():  # a check of scratch, not a method to be compared
                facts.plateau[name, amount] = _doubled(study, cases, own, scratch, draws)
                continue
            facts.against[place] = name
            pairs[place] = cases.scores(own), cases.scores(scratch)
        compared = statistics.compare(pairs, cases.subjects, draws)
        facts.comparisons.update(compared)
        gains = [place for place, comparison in compared.items() if comparison.shown() > 0]
        if gains:
            # All methods and not the gains alone, which the same noise has selected.
            doubled = {
                place: facts.both(place, DOUBLES[facts.against[place]]) for place in compared
            }
            pairs = {
                place: (cases.scores(own), cases.scores(double))
                for place, (own, double) in doubled.items()
                if not own.empty
            }
            again = statistics.compare(pairs, cases.subjects, draws)
            facts.beyond.update({place: again[place] for place in gains if place in again})
    _converge(facts, record)
    return facts


def arrange(study: Study, record: Record) -> Findings:
    """The rows, amounts of labels and runs of a record, in order; nothing compared yet."""
    results = pd.DataFrame([{"draws": ""} | row for row in record.results])
    results["repetition"] = results["repetition"].astype(int)
    # Rows from before the versions were counted are of the first one.
    results["draws"] = results["draws"].replace("", "1")
    runs = {
        (Key(str(method), str(mode)), str(amount)): rows.set_index("repetition").sort_index()
        for (method, mode, amount), rows in results.groupby(["method", "mode", "labels"])
    }
    methods = [*study.methods, *METHODS]  # and those that were run beyond the study's
    keys = sorted(
        {key for key, _ in runs},
        key=lambda key: (methods.index(key.method), key.mode != "finetune"),
    )
    sizes = pd.to_numeric(results["training_cases"]).groupby(results["labels"]).min()
    return Findings(runs, tuple(keys), tuple(sizes.sort_values().index), study.rank)


def _against(facts: Findings, place: Place) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The scratch of a place, and the rows of both; no rows where it was not run."""
    method = place[0].method
    own = scratch_of(method, facts.rank)
    # Doubled steps of one scratch say nothing of the other.
    for name in [own] if method in DOUBLES.values() else [own, SCRATCH]:
        both = facts.both(place, name)
        if name != method and not both[0].empty:
            return name, *both
    return "", pd.DataFrame(), pd.DataFrame()


def _doubled(
    study: Study, cases: Cases, double: pd.DataFrame, scratch: pd.DataFrame, draws: int
) -> Doubled:
    names = [column.name for column in study.columns]
    change = double[names].apply(pd.to_numeric) - scratch[names].apply(pd.to_numeric)
    found = statistics.estimate(cases.scores(double), cases.scores(scratch), cases.subjects, draws)
    interval = found.interval() if found and len(double) > 1 else (np.nan, np.nan)
    return Doubled(len(double), tuple(change.mean(skipna=False)), *interval)


class Cases:
    """The test cases of each cell, in one order.

    Attributes:
      subjects: of the weights that the scores take: of each case, or for kappa each subject once.
    """

    def __init__(self, study: Study, record: Record, classes: int) -> None:
        name, of = study.columns[0]
        self._classes = classes if of == "kappa" else 0
        score = "predicted" if self._classes else name
        rows = [row for row in record.cases if row["score"] == score]
        self._rows = sorted(rows, key=lambda row: row["id"])
        self.subjects = [row["subject"] for row in self._rows]
        if self._classes:
            names, self._subject = np.unique(self.subjects, return_inverse=True)
            self.subjects = names.tolist()
            self._grades = np.array([int(row["grade"]) for row in self._rows])

    def scores(self, results: pd.DataFrame) -> list[statistics.Score]:
        """The score of each cell as a function of weights."""
        return [self._score([row[cell] for row in self._rows]) for cell in results["cell"]]

    def _score(self, values: list[str]) -> statistics.Score:
        if not self._classes:
            return statistics.mean_score(np.array(values, float))
        predicted = np.array(values, int)
        return statistics.kappa_score(self._grades, predicted, self._classes, self._subject)


def _converge(facts: Findings, record: Record) -> None:
    curves = {
        row["cell"]: {int(step): float(row[step]) for step in row if step != "cell"}
        for row in record.curves
    }
    for place, rows in facts.runs.items():
        # 2D networks are validated on slices: their curves compare with one another alone.
        own, others = facts.both(place, scratch_of(place[0].method, facts.rank))
        pairs = zip(own["cell"], others["cell"], strict=True)
        both = [(curves[a], curves[b]) for a, b in pairs if a in curves and b in curves]
        if both:
            facts.convergence[place] = tuple(
                statistics.steps_to_reach(list(a.items()), statistics.SHARE * b[max(b)])
                for a, b in both
            )
        validated = [curves[cell] for cell in rows["cell"] if cell in curves]
        if steps := sorted(set(validated[0]).intersection(*validated)) if validated else []:
            scores = [[curve[step] for step in steps] for curve in validated]
            facts.curves[place] = np.array(steps), np.array(scores)
