"""The page of findings, from the stored tables of the studies."""

import functools
from collections.abc import Sequence
from pathlib import Path

from ssl3d.errors import UserError
from ssl3d.experiments.analysis import results_table, statistics, templates
from ssl3d.experiments.analysis.findings import Key, find
from ssl3d.experiments.analysis.statistics import Comparison
from ssl3d.experiments.analysis.tables import where
from ssl3d.experiments.engine.grid import Cell, Size, cells
from ssl3d.experiments.engine.study import DOUBLES, METHODS, Study


def render(folder: Path, planned: Sequence[Study], studies: Sequence[Study]) -> str:
    """The page, from the tables of the subfolders, each named after the study it begins with.

    Args:
      planned: of several encoders: each has a section as soon as its tables are stored, and
        verdicts once all cells of its default grid are.
      studies: of one. The longest prefix of a folder's name that is a study's names the study.

    Raises:
      UserError: a stored table is missing.
    """

    @functools.cache
    def stored(name: str) -> "Stored":
        fitting = [study for study in studies if name.startswith(_folder(study))]
        return Stored(folder / name, max(fitting, key=lambda study: len(study.name)))

    kept = [study for study in planned if (folder / _folder(study)).exists()]
    shown = [Stored(folder / _folder(study), study, grid=planned_cells(study)) for study in kept]
    return templates.render("results.md", stored=stored, planned=shown)


def planned_cells(study: Study) -> tuple[Cell, ...]:
    """The grid of a study, as its command runs it by default."""
    numbers = study.repetitions, study.modes, study.first_repetition, study.encoders, study.splits
    return cells(Size(study.methods, study.labels, *numbers, tuple(study.arms) or ("",)))


def _folder(study: Study) -> str:
    return study.name.replace("_", "-")


class Stored:
    """A study as its folder of results keeps it; its settings may have changed since.

    Of a planned study, the cells of its `grid` alone: before all are there, there is no verdict.

    Raises:
      UserError: no stored table, or two rows of one cell of the grid.
    """

    def __init__(self, folder: Path, study: Study, grid: Sequence[Cell] = ()) -> None:
        self.record, self.folder = results_table.read(folder), folder.name
        if self.record.results.empty:
            raise UserError(f"{folder}: no results.csv; restore the stored study")
        missing = self._restrict(grid) if grid else 0
        index = self.record.cases.reset_index()
        classes = 1 + int(index["grade"].astype(int).max()) if "grade" in index else 0
        self.count = f"{len(self.record.results)} cells"
        if missing:
            self.count = f"{len(grid) - missing} of {len(grid)} cells so far"
        self.facts = find(study, self.record, classes, missing=(missing, len(grid)))
        self.name, self.title = study.name, study.title
        self.question, self.score = study.question, study.columns[0].name
        generated = study.preset.startswith("phantom")
        self.data = "" if generated else f"--data=data/{study.preset} "  # of its command

    def _restrict(self, grid: Sequence[Cell]) -> int:
        """Leaves the rows of a grid; the number of its cells that have none."""
        rows = self.record.results.reindex(columns=["cell", *Cell._fields], fill_value="")
        wanted = {tuple(map(str, cell)) for cell in grid}
        names: dict[tuple[str, ...], str] = {}
        for name, *cell in rows.itertuples(index=False, name=None):
            if tuple(cell) in wanted and names.setdefault(tuple(cell), name) != name:
                raise UserError(
                    f"{self.folder}/results.csv: {names[tuple(cell)]} and {name} are of one cell; "
                    "remove the row of the older"
                )
        self.record = results_table.restrict(self.record, names.values())
        return len(wanted) - len(names)

    @property
    def days(self) -> str:
        """The first and the last day of its cells."""
        days = self.record.days
        return " to ".join(dict.fromkeys((days[0], days[-1])))

    def against(self, method: str, amount: str = "2") -> Comparison:
        """A method compared with scratch of the same steps, as in the report."""
        return self.facts.comparisons[_key(method), amount]

    def beyond(self, method: str, amount: str = "2") -> Comparison:
        """A method that gains, compared with its scratch with twice the steps."""
        against = DOUBLES[self.against(method, amount).against]
        return self.facts.beyond[_key(method), amount, against]

    def encoders(self, method: str, amount: str) -> int:
        """The number of encoders of a method."""
        return self.facts.runs[_key(method), amount]["pretraining"].nunique()

    def plateau(self, scratch: str, amount: str) -> str:
        """Whether a scratch is at its plateau, once that can be told."""
        found = f"{where(self.facts.plateau[scratch, amount])}at its plateau"
        return self.facts.incomplete or found

    def largest(self, amount: str) -> str:
        """The 3D proxy task with the largest difference to scratch."""
        compared = self.facts.compared(amount).items()
        found = [(c.difference, row.method) for row, c in compared if METHODS[row.method].rank == 3]
        return max(found)[1]

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


def _key(method: str) -> Key:
    return Key(method, METHODS[method].mode or "finetune")
