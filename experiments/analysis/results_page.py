"""results/README.md: the findings of all stored studies on one page, without their data sets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.analysis import findings, report, results_table, statistics
from experiments.analysis.findings import Findings, Key
from experiments.analysis.results_table import numbers
from experiments.analysis.statistics import Comparison
from experiments.engine.study import METHODS, Study
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError

PAGE = "README.md"


class Stored:
    """A study as its folder of results keeps it.

    Attributes:
      study: as it is now; the folder may hold other steps, see its results.csv.
      record: all rows.
      runs: of the record, by repetition.
      cases: the scores of the test cases.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.study, self.record = study, results_table.read(folder)
        if not self.record.results:
            raise UserError(f"{folder}: no results.csv; restore the stored study")
        self.runs = findings.arrange(study, self.record)
        # More classes than occur would make the same kappa.
        grades = [
            int(row[key])
            for row in self.record.cases
            for key in row
            if row["score"] == "predicted" and key not in ("id", "subject", "score")
        ]
        self.classes = 1 + max(grades, default=0)
        self.cases = findings.Cases(study, self.record, self.classes)

    @functools.cached_property
    def facts(self) -> Findings:
        """Everything that the report of the study compares."""
        return findings.find(self.study, self.record, self.classes)

    @property
    def hours(self) -> float:
        """Of all runs."""
        return sum(numbers([*self.record.results, *self.record.pretraining], "seconds")) / 3600

    def against(self, method: str, amount: str = "2") -> Comparison:
        """A method compared with scratch of the same steps, corrected as in its report."""
        return self.facts.comparisons[_key(method), amount]

    def beyond(self, method: str, amount: str = "2") -> Comparison:
        """A method that gains, compared with scratch with twice the steps."""
        return self.facts.beyond[_key(method), amount]

    def compare(
        self,
        method: str,
        others: Stored,
        other: str,
        amount: str = "2",
        looks: int = 1,
        of: Stored | None = None,
    ) -> Comparison:
        """A method compared with one of another folder, not corrected for other methods.

        Args:
          looks: number of times the data were looked at; p and interval are corrected for them.
          of: repetitions are restricted to those of this folder.
        """
        own, rest = self.runs.runs[_key(method), amount], others.runs.runs[_key(other), amount]
        common = own.index.intersection(rest.index)
        if of:
            common = common.intersection([int(row["repetition"]) for row in of.record.results])
        found = statistics.estimate(
            self.cases.scores(own.loc[common]),
            others.cases.scores(rest.loc[common]),
            self.cases.subjects,
        )
        assert found
        assert self.cases.subjects == others.cases.subjects
        level = found.interval(statistics.ALPHA / looks)
        p = min(1.0, looks * found.p)
        return Comparison(found.value, *found.interval(), found.p, p, *level, len(common))

    def proxy_range(self, amount: str, rank: int) -> str:
        """The lowest and highest difference to scratch of the proxy tasks of a rank."""
        differences = [
            comparison.difference
            for (key, a), comparison in self.facts.comparisons.items()
            if a == amount and METHODS[key.method].task and METHODS[key.method].rank == rank
        ]
        return f"{min(differences):+.3f} to {max(differences):+.3f}"

    def deviation(self, method: str, amount: str) -> str:
        """The standard deviation over repetitions."""
        values = self.runs.values(_key(method), amount, self.study.columns[0].name)
        return f"{np.std(values, ddof=1):.3f}"


def render(folder: Path, studies: Sequence[Study]) -> str:
    """The page, from the tables of the folder's subfolders."""

    @functools.cache
    def stored(name: str) -> Stored:
        fitting = [s for s in studies if name.startswith(s.name.replace("_", "-"))]
        return Stored(folder / name, max(fitting, key=lambda study: len(study.name)))

    return report.render("results.md", stored=stored, effect=effect, verdict=verdict)


def write(folder: Path, studies: Sequence[Study]) -> None:
    """Writes the page into the folder of the results."""
    page = render(folder, studies)
    with atomic_write(folder / PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"page: {folder / PAGE}")


def effect(found: Comparison | findings.Doubled) -> str:
    """Mean and interval, at Holm's level where several methods were compared."""
    if isinstance(found, findings.Doubled):
        return f"{found.changes[0]:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.difference:+.3f} [{found.low_holm:+.3f}, {found.high_holm:+.3f}]"


def verdict(found: Comparison) -> str:
    """A gain, a loss, or neither."""
    return {1: "gain", 0: "no gain shown", -1: "loss"}[found.shown()]


def _key(method: str) -> Key:
    random = method.startswith("scratch")
    return Key(method, "random" if random else METHODS[method].mode or "finetune")
