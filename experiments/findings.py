"""Renders results/README.md, the page of findings, from the stored tables of the studies.

python -m experiments.findings [--results=DIR]
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl3d import cli
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError
from ssl3d.experiments import hippocampus, hippocampus_levels, hippocampus_slices, phantom
from ssl3d.experiments.analysis import results_table, statistics, templates
from ssl3d.experiments.analysis.findings import Key, find
from ssl3d.experiments.analysis.statistics import Comparison
from ssl3d.experiments.engine.study import METHODS, Study

# The longest prefix of a folder's name that is a study's names the study.
STUDIES = tuple(m.STUDY for m in (hippocampus, hippocampus_levels, hippocampus_slices, phantom))


def main(arguments: Sequence[str]) -> int:
    """Runs the command; the exit status. Raises `UserError` where a stored table is missing."""
    parser = cli.Parser(prog="python -m ssl3d.study findings", description=__doc__)
    default = Path("results")
    parser.add_argument("--results", type=cli.path, default=default, help="default: %(default)s")
    file = parser.parse_args(arguments).results / "README.md"
    page = render(file.parent)
    with atomic_write(file) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"page: {file}")
    return 0


def render(folder: Path) -> str:
    """The page, from the tables of the subfolders, each named after the study it begins with."""

    @functools.cache
    def stored(name: str) -> "Stored":
        fitting = [study for study in STUDIES if name.startswith(study.name.replace("_", "-"))]
        return Stored(folder / name, max(fitting, key=lambda study: len(study.name)))

    return templates.render("results.md", stored=stored)


class Stored:
    """A study as its folder of results keeps it, all rows; its settings may have changed since."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.record = results_table.read(folder)
        if self.record.results.empty:
            raise UserError(f"{folder}: no results.csv; restore the stored study")
        index = self.record.cases.reset_index()
        classes = 1 + int(index["grade"].astype(int).max()) if "grade" in index else 0
        self.facts = find(study, self.record, classes)
        self._score = study.columns[0].name

    def against(self, method: str, amount: str = "2") -> Comparison:
        """A method compared with scratch of the same steps, as in the report."""
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
            for row, comparison in self.facts.compared(amount).items()
            if METHODS[row.method].task and METHODS[row.method].rank == 3
        ]
        return f"{min(differences):+.3f} to {max(differences):+.3f}"

    def deviation(self, method: str, amount: str) -> str:
        """The standard deviation of the score over repetitions."""
        return f"{np.std(self.facts.values(_key(method), amount, self._score), ddof=1):.3f}"


def _key(method: str) -> Key:
    return Key(method, METHODS[method].mode or "finetune")


if __name__ == "__main__":
    cli.run(main)
