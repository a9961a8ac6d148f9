"""The stored results of a study: four tables, to which every finished run adds its rows.

    results.csv       a row per cell: scores, sizes, times, seeds, hashes, code version
    pretraining.csv   a row per pretraining
    cases.csv         a row per test case and score, a column per cell: for the statistics
    curves.csv        a row per cell, a column per validated step: the validation score

The tables are sufficient: a cell whose rows exist is not run again, even without its run folder,
e.g. in a checkout of the repository. In cases.csv and curves.csv `nan` is an undefined score and an
empty field one that does not exist (a step or a case of other cells).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.engine import worker
from experiments.engine.grid import CELLS, PRETRAINING
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError

Row = dict[str, str]
RESULTS, CASES = "results.csv", "cases.csv"
_FILES = (RESULTS, "pretraining.csv", CASES, "curves.csv")
# What tells rows of cases.csv apart; `score` names the column of the study ("dice") or "predicted".
_CASE = ("id", "subject", "grade")
_KEYS = (*_CASE, "score")


class Record(NamedTuple):
    """The rows of the four tables, values as text; "" is undefined in the first two."""

    results: list[Row]
    pretraining: list[Row]
    cases: list[Row]
    curves: list[Row]

    def known(self) -> set[str]:
        """Names of the finished cells."""
        return {row["cell"] for row in self.results}


def read(output: Path) -> Record:
    """The tables of a folder, merged with the results of its runs.

    Where the folder of a run exists, its results replace the rows of the tables: another process
    may have replaced some of the tables and not yet the others.

    Raises:
      UserError: a table cannot be read, or lacks the test cases of a cell.
    """
    results, pretraining, cases, curves = (_read_table(output / file) for file in _FILES)
    # Older versions wrote a row per cell and test case, and per cell and step.
    if cases and "cell" in cases[0]:
        cases = _wide_cases((row["cell"], row) for row in cases)
    if curves and "step" in curves[0]:
        curves = _wide_curves((row["cell"], row["step"], row["score"]) for row in curves)
    runs, trained = _results(output / CELLS), _results(output / PRETRAINING)
    own = {run["row"]["cell"] for run in runs}
    results = [row for row in results if row["cell"] not in own]
    cases = [{key: row[key] for key in row if row[key] and key not in own} for row in cases]
    curves = [{key: row[key] for key in row if row[key]} for row in curves]
    lacking = {row["cell"] for row in results}.difference(*cases)
    if lacking:
        raise UserError(
            f"{output / CASES}: has no column {min(lacking)}; restore the file, or remove the row "
            f"of that cell from {RESULTS} to run it again"
        )
    new = {run["row"]["pretraining"] for run in trained}
    return Record(
        results + [_text(run["row"]) for run in runs],
        [row for row in pretraining if row["pretraining"] not in new]
        + [_text(run["row"]) for run in trained],
        _wide_cases(((run["row"]["cell"], case) for run in runs for case in run["cases"]), cases),
        [row for row in curves if row["cell"] not in own]
        + _wide_curves((run["row"]["cell"], *point) for run in runs for point in run["curve"]),
    )


def write(output: Path, record: Record) -> None:
    """Replaces the four tables, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(_FILES, record, strict=True):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        columns.sort(key=lambda name: int(name) if name.isdigit() else -1)  # the steps of curves
        with (
            atomic_write(output / file) as partial,
            partial.open("w", newline="", encoding="utf-8") as text,
        ):
            table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def update(output: Path) -> None:
    """Brings the tables up to date while other processes may do the same.

    A process that has replaced newer tables by older ones notices, and reads the runs again.
    """
    written = None
    while (found := read(output)) != written:
        write(output, found)
        written = found


def restrict(record: Record, names: Iterable[str]) -> Record:
    """The cells of these names, and the pretraining that they use."""
    names = set(names)
    results = [row for row in record.results if row["cell"] in names]
    used, kept = {row["pretraining"] for row in results}, {*_KEYS, *names}
    cases = [{key: value for key, value in row.items() if key in kept} for row in record.cases]
    return Record(
        results,
        [row for row in record.pretraining if row["pretraining"] in used],
        [row for row in cases if not row.keys() <= set(_KEYS)],
        [row for row in record.curves if row["cell"] in names],
    )


def numbers(rows: Sequence[Row], key: str) -> list[float]:
    """A column as numbers; NaN where it is undefined."""
    return [float(row.get(key) or "nan") for row in rows]


def _results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"*/{worker.RESULT}"))]


def _read_table(file: Path) -> list[Row]:
    try:
        with file.open(newline="", encoding="utf-8") as text:
            return list(csv.DictReader(text))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it to merge anew") from None


def _wide_cases(
    found: Iterable[tuple[str, dict[str, Any]]], known: Iterable[Row] = ()
) -> list[Row]:
    """Rows of cases.csv, `known` ones first, of pairs of a cell and its scores of one case."""
    table = {tuple(row.get(key) for key in _KEYS): row for row in known}
    for cell, case in found:
        about = {key: str(case[key]) for key in _CASE if key in case}
        for score in [key for key in case if key not in ("cell", *_CASE)]:
            key = (*(about.get(key) for key in _CASE), score)
            table.setdefault(key, about | {"score": score})[cell] = _defined(case[score])
    return [row for row in table.values() if not row.keys() <= set(_KEYS)]


def _wide_curves(points: Iterable[tuple[str, Any, Any]]) -> list[Row]:
    table: dict[str, Row] = {}
    for cell, step, score in points:
        table.setdefault(cell, {"cell": cell})[str(step)] = _defined(score)
    return list(table.values())


def _text(row: dict[str, Any]) -> Row:
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _defined(score: Any) -> str:
    return "nan" if score in (None, "") else str(score)
