"""results/README.md: the findings of all stored studies on one page, without their data sets."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.analysis import findings, results_table, statistics, templates
from experiments.analysis.findings import Key
from experiments.analysis.statistics import Comparison
from experiments.engine.study import METHODS, Study
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError


class Stored:
    """A study as its folder of results keeps it, all rows; its settings may have changed since."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.record = results_table.read(folder)
        if self.record.results.empty:
            raise UserError(f"{folder}: no results.csv; restore the stored study")
        index = self.record.cases.reset_index()
        classes = 1 + index["grade"].astype(int).max() if "grade" in index else 0
        self.facts = findings.find(study, self.record, classes)
        self._score = study.columns[0].name

    def against(self, method: str, amount: str = "2") -> Comparison:
        """A method compared with scratch of the same steps, corrected as in the report."""
        return self.facts.comparisons[_key(method), amount]

    def beyond(self, method: str, amount: str = "2") -> Comparison:
        """A method that gains, compared with scratch with twice the steps."""
        return self.facts.beyond[_key(method), amount]

    def compare(
        self, method: str, others: "Stored", other: str, looks: int = 1, of: "Stored | None" = None
    ) -> Comparison:
        """Two methods with two labels, of two folders, in their common repetitions.

        Args:
          looks: number of looks at the data, which p and interval are corrected for.
          of: restricts the repetitions to those of this folder.
        """
        own, rest = self.facts.runs[_key(method), "2"], others.facts.runs[_key(other), "2"]
        common = own.index.intersection(rest.index)
        if of:
            common = common.intersection(of.record.results["repetition"].astype(int).tolist())
        own, rest, subjects = own.loc[common], rest.loc[common], self.facts.subjects
        assert subjects == others.facts.subjects
        found = statistics.estimate(own["weighted"], rest["weighted"], subjects)
        assert found
        p = min(1.0, looks * found.p)
        return Comparison(found, p, statistics.ALPHA / looks, len(common))

    def proxy_range(self, amount: str) -> str:
        """The lowest and the highest difference of the 3D proxy tasks to scratch."""
        differences = [
            comparison.difference
            for key, comparison in self.facts.compared(amount).items()
            if METHODS[key.method].task and METHODS[key.method].rank == 3
        ]
        return f"{min(differences):+.3f} to {max(differences):+.3f}"

    def deviation(self, method: str, amount: str) -> str:
        """The standard deviation of the score over repetitions."""
        return f"{np.std(self.facts.values(_key(method), amount, self._score), ddof=1):.3f}"


def render(folder: Path, studies: Sequence[Study]) -> str:
    """The page, from the tables of the subfolders, each named after the study it begins with."""

    @functools.cache
    def stored(name: str) -> Stored:
        fitting = [study for study in studies if name.startswith(study.name.replace("_", "-"))]
        return Stored(folder / name, max(fitting, key=lambda study: len(study.name)))

    return templates.render("results.md", stored=stored)


def write(folder: Path, studies: Sequence[Study]) -> None:
    """Writes the page into the folder of the results. Raises `UserError` if tables are missing."""
    page = render(folder, studies)
    with atomic_write(folder / "README.md") as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"page: {folder / 'README.md'}")


def _key(method: str) -> Key:
    return Key(method, METHODS[method].mode or "finetune")
