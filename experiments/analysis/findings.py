"""From the rows of a study to scores, comparisons, convergence and the plateau of scratch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ssl3d.experiments.analysis import statistics
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.analysis.statistics import Comparison, Estimate, Pair
from ssl3d.experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D, Study, scratch_of

# At a plateau, doubling the steps moves the score of scratch by less than this: the whole interval
# of what it adds lies within.
PLATEAU = 0.005
# A scratch of a lower score (a Dice; of a kappa 0.2) was trained too shortly to judge anything by,
# unless twice the steps add less than this: with few labels more steps need not help.
LEAST_SCORE = 0.5
LEAST_KAPPA = 0.2
LITTLE = 0.02
LONGER = (*DOUBLES.values(), "scratch-long")


class Key(NamedTuple):
    """A row of the tables."""

    method: str
    mode: str


# A row of the tables at an amount of labels.
Place = tuple[Key, str]
_ARM = ", "  # between an amount of labels and its arm


def arm_of(amount: str) -> str:
    """The arm "rate 0.002" of "2, rate 0.002"; "" of an amount of labels alone."""
    return amount.partition(_ARM)[2]


def in_words(amount: str) -> str:
    """An amount of labels in a sentence: "2 labels", or "2 labels (rate 0.002)" with its arm."""
    labels, _, arm = amount.partition(_ARM)
    return f"{labels} labels ({arm})" if arm else f"{labels} labels"


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings of a study, by place; the first column is the score compared."""

    # results.csv at each place, indexed by repetition, with the score of a cell's test cases as a
    # function of weights in the column `weighted`.
    runs: Mapping[Place, pd.DataFrame]
    subjects: list[str]  # of the weights
    rows: list[Key]  # of the tables, in order
    labels: list[str]  # amounts, ascending
    rank: int  # of the data
    # The compared score; None where it is undefined, or nothing tells its error.
    scores: dict[Place, Estimate | None] = dataclasses.field(default_factory=dict)
    # With scratch2d for 2D methods on volumes if it was run, else (and for scratch2d itself) with
    # scratch.
    comparisons: dict[Place, Comparison] = dataclasses.field(default_factory=dict)
    # Of the methods that check the study, each for itself, and of no family of others.
    controls: dict[Place, Comparison] = dataclasses.field(default_factory=dict)
    # The gains again, against a scratch that was trained longer: the third part of the key.
    beyond: dict[tuple[Key, str, str], Comparison] = dataclasses.field(default_factory=dict)
    # Scratch with twice the steps against scratch, by its name and amount of labels.
    plateau: dict[tuple[str, str], Comparison] = dataclasses.field(default_factory=dict)
    # For each repetition the validated step at which 95 % of the final validation score of scratch
    # with the same network is reached; infinite if never.
    convergence: dict[Place, list[float]] = dataclasses.field(default_factory=dict)
    # Validation scores, a row per step and a column per repetition.
    curves: dict[Place, pd.DataFrame] = dataclasses.field(default_factory=dict)
    # Rows whose training data were sampled by another version of the code than their scratch's.
    mixed: list[Key] = dataclasses.field(default_factory=list)
    missing: tuple[int, int] = (0, 0)  # planned cells, and of how many

    @property
    def repetitions(self) -> int:
        """The largest number of repetitions of any row."""
        return max(map(len, self.runs.values()))

    @property
    def single_encoders(self) -> list[str]:
        """The rows that were pretrained only once."""
        trained: dict[Key, set[str]] = {}
        for (key, _), rows in self.runs.items():
            trained.setdefault(key, set()).update(rows["pretraining"])
        return [self.label(key) for key in self.rows if len(trained[key] - {""}) == 1]

    @property
    def sliced(self) -> bool:
        """Whether there are 2D networks on the slices of volumes."""
        return any(scratch_of(key.method, self.rank) == SCRATCH_2D for key in self.rows)

    @property
    def unchecked(self) -> dict[str, list[str]]:
        """The amounts of labels with which a scratch is not known to be at its plateau, if any."""
        found: dict[str, list[str]] = {}
        for key, amount in self.places:
            if key.method in DOUBLES and (key.method, amount) not in self.plateau:
                found.setdefault(key.method, []).append(amount)
        return found

    @property
    def places(self) -> list[Place]:
        """The places that were run, in the order of the tables, by amount of labels."""
        return [(key, a) for a in self.labels for key in self.rows if (key, a) in self.runs]

    def compared(self, amount: str) -> dict[Key, Comparison]:
        """The comparisons with an amount of labels."""
        return {key: found for (key, a), found in self.comparisons.items() if a == amount}

    def shows_no_gain(self, amount: str) -> bool:
        """Whether pretraining was judged with an amount of labels, and nothing gained."""
        compared = self.compared(amount).values()
        return bool(compared) and all(c.shown() < 1 and not c.pending for c in compared)

    def moved(self, amount: str) -> dict[str, Comparison]:
        """The scratches that are not shown to be at their plateau with an amount of labels."""
        if self.missing[0]:
            return {}
        doubled = {name: found for (name, a), found in self.plateau.items() if a == amount}
        return {name: found for name, found in doubled.items() if not found.within(PLATEAU)}

    @property
    def equal_steps_only(self) -> dict[tuple[Key, str, str], Comparison]:
        """The gains that are not shown over a scratch that was trained longer, as in `beyond`.

        A single repetition never shows a gain, and questions none.
        """
        several = {about: found for about, found in self.beyond.items() if found.repetitions > 1}
        return {about: found for about, found in several.items() if found.shown() < 1}

    @property
    def diverged(self) -> list[tuple[Key, str, Any, str]]:
        """Runs of a loss that was not finite: row, amount of labels, repetition and step."""
        return [
            (key, amount, number, where)
            for (key, amount), rows in self.runs.items()
            if "diverged" in rows
            for number, where in rows["diverged"].items()
            if where
        ]

    @property
    def incomplete(self) -> str:
        """That planned cells are missing, in the place of a verdict; "" if none is."""
        missing, planned = self.missing
        return f"no verdict yet, {missing} of {planned} cells are missing" if missing else ""

    def pending(self, scratch: str, amount: str, least: float) -> str:
        """Why nothing can be judged by a scratch with an amount of labels; "" if it can."""
        if self.incomplete:
            return self.incomplete
        score = self.scores.get((Key(scratch, "random"), amount))
        doubled = self.plateau.get((scratch, amount))
        trained = doubled and doubled.repetitions > 1 and doubled.interval[1] < LITTLE
        short = score and score.value < least and not trained
        return "too short to judge" if short else ""

    def replication(self, place: Place) -> str:
        """The numbers of repetitions, splits and encoders of a place, e.g. "10 repetitions"."""
        rows = self.runs[place]
        splits, encoders = rows["split"].nunique(), len({*rows["pretraining"]} - {""})
        counts = {"repetition": len(rows), "split": splits * (splits > 1), "encoder": encoders}
        return ", ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n)

    def steps(self, amount: str) -> int:
        """The usual steps with an amount of labels: scratch-long and the doubled ones have more."""
        runs = (rows for (_, a), rows in self.runs.items() if a == amount)
        return min(pd.to_numeric(rows["steps"]).min() for rows in runs)

    def label(self, key: Key) -> str:
        """The name of a row: with its mode if the study has several."""
        modes = {row.mode for row in self.rows if not METHODS[row.method].mode}
        several = len(modes) > 1 and not METHODS[key.method].mode
        return f"{key.method}, {key.mode}" if several else key.method

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

    def with_scratch(self, place: Place) -> tuple[str, pd.DataFrame, pd.DataFrame]:
        """The name of the scratch that a place is compared with, and `both`; "" for none."""
        method = place[0].method
        own = scratch_of(method, self.rank)
        # Doubled steps of one scratch say nothing of the other.
        for name in [own] if method in DOUBLES.values() else [own, SCRATCH]:
            rows, scratch = self.both(place, name)
            if name != method and len(rows):
                return name, rows, scratch
        return "", pd.DataFrame(), pd.DataFrame()


def find(
    study: Study,
    record: Record,
    classes: int,
    draws: int = statistics.DRAWS,
    missing: tuple[int, int] = (0, 0),
) -> Findings:
    """The findings of a record of the study's cells alone; `classes` is K of a classification."""
    facts = dataclasses.replace(arrange(study, record, classes), missing=missing)
    least = LEAST_KAPPA if study.columns[0].of == "kappa" else LEAST_SCORE
    for amount in facts.labels:
        pairs: dict[Place, Pair] = {}
        for key in [key for key, a in facts.places if a == amount]:
            place, rows = (key, amount), facts.runs[key, amount]
            facts.scores[place] = statistics.estimate(
                rows["weighted"], None, facts.subjects, draws, units=units_of(rows)
            )
            name, own, scratch = facts.with_scratch(place)
            if not name:
                continue
            if (own["draws"] != scratch["draws"]).any() and key not in facts.mixed:
                facts.mixed.append(key)
            pair = _pair(name, own, scratch)
            if key.method in DOUBLES.values():  # a check of scratch, not a method to be compared
                doubled = statistics.compare({(name, amount): pair}, facts.subjects, draws)
                facts.plateau.update(doubled)
            else:
                pairs[place] = pair
        _judge(facts, amount, pairs, least, draws)
    _converge(facts, record)
    return facts


def _judge(
    facts: Findings, amount: str, pairs: Mapping[Place, Pair], least: float, draws: int
) -> None:
    """Fills in `comparisons`, `controls` and `beyond` with an amount of labels."""

    def judged(family: Mapping[Any, Pair]) -> dict[Any, Comparison]:
        found = statistics.compare(family, facts.subjects, draws)
        return {
            name: one._replace(pending=facts.pending(_usual(one.against), amount, least))
            for name, one in found.items()
        }

    family = {p: pair for p, pair in pairs.items() if not METHODS[p[0].method].control}
    for place in pairs.keys() - family.keys():
        facts.controls.update(judged({place: pairs[place]}))
    compared = judged(family)
    facts.comparisons.update(compared)
    if not any(comparison.shown() > 0 for comparison in compared.values()):
        return
    for longer in LONGER:
        # All methods and not the gains alone, which the same noise has selected.
        again = {
            place: _pair(longer, *facts.both(place, longer))
            for place, comparison in compared.items()
            if comparison.against == _usual(longer)
        }
        for place, found in judged(again).items():
            if compared[place].shown() > 0:
                facts.beyond[(*place, longer)] = found


def _usual(scratch: str) -> str:
    """The scratch that a longer one is a longer training of; another is its own."""
    doubled = {double: name for name, double in DOUBLES.items()}
    return doubled.get(scratch, SCRATCH if scratch in LONGER else scratch)


def units_of(rows: pd.DataFrame) -> list[Any]:
    """The unit of replication of each repetition: its split, encoder, or itself.

    Of splits and encoders those that are fewer: splits may share the encoders of other data.
    """
    several = {name: rows[name].nunique() for name in ("split", "pretraining")}
    several = {name: count for name, count in several.items() if count > 1}
    return rows[min(several, key=several.__getitem__)].tolist() if several else rows.index.tolist()


def _pair(against: str, own: pd.DataFrame, scratch: pd.DataFrame) -> Pair:
    return Pair(against, own["weighted"], scratch["weighted"], units_of(own))


def arrange(study: Study, record: Record, classes: int) -> Findings:
    """The rows, amounts of labels and runs of a record, in order; nothing compared yet.

    An arm is part of the amount of labels: nothing is compared across arms.
    """
    results = record.results.astype({"repetition": int, "training_cases": int})
    # Tables from before there were versions of draws, encoders, splits and arms.
    for name, value in (("draws", "1"), ("encoder", "1"), ("split", "0"), ("arm", "")):
        results[name] = results[name].replace("", value) if name in results else value
    arms = results["arm"].where(results["arm"] == "", _ARM + results["arm"])
    results["labels"] = results["labels"] + arms
    weighted, subjects = weighted_scores(study, record, classes)
    results["weighted"] = results["cell"].map(weighted.get)
    runs = {
        (Key(str(method), str(mode)), str(amount)): rows.set_index("repetition").sort_index()
        for (method, mode, amount), rows in results.groupby(["method", "mode", "labels"])
    }
    methods = [*study.methods, *METHODS]  # and those that were run beyond the study's
    order = {key: (methods.index(key.method), key.mode != "finetune") for key, _ in runs}
    labels = results.groupby("labels")["training_cases"].min().sort_values(kind="stable").index
    return Findings(
        runs, subjects, sorted(order, key=order.__getitem__), labels.tolist(), study.rank
    )


def weighted_scores(
    study: Study, record: Record, classes: int
) -> tuple[dict[Any, statistics.Score], list[str]]:
    """The compared score of each cell as a function of weights, and the subject of each weight.

    A weight is that of a case or, for kappa, of all cases of a subject.
    """
    name, of = study.columns[0]
    score = record.cases.index.get_level_values("score")
    table = record.cases[score == ("predicted" if of == "kappa" else name)].sort_index(level="id")
    subjects = table.index.get_level_values("subject").tolist()
    if of != "kappa":
        # Empty where another split tests the case.
        values = table.replace("", "nan").astype(float)
        return {
            cell: statistics.mean_score(own.to_numpy()) for cell, own in values.items()
        }, subjects
    names, subject = np.unique(subjects, return_inverse=True)
    grades = table.index.get_level_values("grade").astype(int).to_numpy()
    kappas = {}
    for cell, own in table.items():
        tested = (own != "").to_numpy()
        about = grades[tested], own[tested].to_numpy(int), classes, subject[tested], len(names)
        kappas[cell] = statistics.kappa_score(*about)
    return kappas, names.tolist()


def _converge(facts: Findings, record: Record) -> None:
    curves = {cell: own[own != ""].astype(float) for cell, own in record.curves.items()}
    for place, rows in facts.runs.items():
        # 2D networks are validated on slices: their curves compare with one another alone.
        own, others = facts.both(place, scratch_of(place[0].method, facts.rank))
        pairs = zip(own["cell"], others["cell"], strict=True)
        both = [(curves[a], curves[b]) for a, b in pairs if a in curves and b in curves]
        if both:
            facts.convergence[place] = [
                statistics.steps_to_reach(a.items(), statistics.SHARE * b.iloc[-1]) for a, b in both
            ]
        if validated := [curves[cell] for cell in rows["cell"] if cell in curves]:
            facts.curves[place] = pd.concat(validated, axis=1, join="inner")
