"""What is kept of a study: four tables, to which every finished run adds its rows.

    results.csv       a row per cell: scores, sizes, times, seeds, hashes, code version
    pretraining.csv   a row per pretraining
    cases.csv         each test case of each cell, for the statistics
    curves.csv        the validation score of each cell over its steps

They stand for themselves: cells whose rows are there are not run again, even where their folders
are gone, as in a checkout of the repository.
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
_FILES = {
    "results": "results.csv",
    "pretraining": "pretraining.csv",
    "cases": "cases.csv",
    "curves": "curves.csv",
}


class Record(NamedTuple):
    """The rows of the four tables, values as text; "" is not defined."""

    results: list[Row]
    pretraining: list[Row]
    cases: list[Row]
    curves: list[Row]

    def known(self) -> set[str]:
        """Names of the cells that are there."""
        return {row["cell"] for row in self.results}


def read(output: Path) -> Record:
    """The tables of a folder, and the results of its runs.

    Where a run's folder is there, its rows are those of the folder, whatever the tables have of it:
    another process may have replaced some of them and not yet the others.

    Raises:
      UserError: a table that cannot be read, or a cell whose test cases are missing.
    """
    record = Record(*(_read_table(output / file) for file in _FILES.values()))
    cells, pretraining = _results(output / CELLS), _results(output / PRETRAINING)
    own = {result["row"]["cell"] for result in cells}
    trained = {result["row"]["pretraining"] for result in pretraining}
    whole = Record(
        [row for row in record.results if row["cell"] not in own],
        [row for row in record.pretraining if row["pretraining"] not in trained],
        [row for row in record.cases if row["cell"] not in own],
        [row for row in record.curves if row["cell"] not in own],
    )
    lacking = whole.known() - {row["cell"] for row in whole.cases}
    if lacking:
        raise UserError(
            f"{output / _FILES['cases']}: has no rows of {min(lacking)}; bring them back, or "
            f"remove its row from {_FILES['results']} to run it again"
        )
    for result in cells:
        cell = result["row"]["cell"]
        whole.results.append(_text(result["row"]))
        whole.cases.extend(_text({"cell": cell} | case) for case in result["cases"])
        whole.curves.extend(
            _text({"cell": cell, "step": step, "score": score}) for step, score in result["curve"]
        )
    whole.pretraining.extend(_text(result["row"]) for result in pretraining)
    return whole


def write(output: Path, record: Record) -> None:
    """Replaces the four tables; each appears whole."""
    output.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(_FILES.values(), record, strict=True):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (
            atomic_write(output / file) as partial,
            partial.open("w", newline="", encoding="utf-8") as text,
        ):
            table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def update(output: Path) -> None:
    """Brings the tables up to date, together with others that may be doing so.

    Who replaced newer tables by older ones notices, and reads the runs' results again.
    """
    written = None
    while (found := read(output)) != written:
        write(output, found)
        written = found


def restrict(record: Record, names: Iterable[str]) -> Record:
    """The cells of these names and what belongs to them."""
    names = set(names)
    results = [row for row in record.results if row["cell"] in names]
    needed = {row["pretraining"] for row in results}
    return Record(
        results,
        [row for row in record.pretraining if row["pretraining"] in needed],
        [row for row in record.cases if row["cell"] in names],
        [row for row in record.curves if row["cell"] in names],
    )


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


def _text(row: dict[str, Any]) -> Row:
    return {key: "" if value is None else str(value) for key, value in row.items()}


def numbers(rows: Sequence[Row], key: str) -> list[float]:
    """A column as numbers; NaN where it is not defined."""
    return [float(row.get(key) or "nan") for row in rows]
