"""The stored results of a study: four tables, to which every finished run adds its rows.

    results.csv       a row per cell: scores, sizes, times, seeds, hashes, code version
    pretraining.csv   a row per pretraining
    cases.csv         a row per test case and score, a column per cell: for the statistics
    curves.csv        a row per cell, a column per validated step: the validation score

The tables are sufficient: a cell whose rows exist is not run again, even without its run folder,
e.g. in a checkout of the repository. In cases.csv and curves.csv `nan` is an undefined score and an
empty field one that does not exist (a step or a case of other cells). A table that was compressed
by gzip, e.g. cases.csv.gz, stays so: where each split has its own cases, most fields are empty.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ssl3d import documents
from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError
from ssl3d.experiments.engine import worker
from ssl3d.experiments.engine.grid import CELLS, PRETRAINING

RESULTS, CASES = "results.csv", "cases.csv"
# The files, and what tells their rows apart. A score is a column of the study or "predicted".
_TABLES = {
    RESULTS: ["cell", "method", "mode", "labels", "repetition", "pretraining"],
    "pretraining.csv": ["pretraining"],
    CASES: ["id", "subject", "grade", "score"],
    "curves.csv": ["cell"],
}


class Record(NamedTuple):
    """The four tables as text; "" is undefined in the first two."""

    results: pd.DataFrame
    pretraining: pd.DataFrame
    cases: pd.DataFrame  # indexed by `_TABLES[CASES]`; a column per cell
    curves: pd.DataFrame  # indexed by step in ascending order; a column per cell

    def known(self) -> set[str]:
        """Names of the finished cells."""
        return set(self.results["cell"])

    @property
    def days(self) -> list[str]:
        """The days on which cells were finished, ascending, as far as they are known."""
        kept = self.results.get("finished", pd.Series(dtype=str))
        return sorted(day for day in kept.unique() if day)

    @property
    def hours(self) -> float:
        """Wall time of all runs."""
        return pd.to_numeric(pd.concat(self[:2])["seconds"]).sum() / 3600


def read(output: Path) -> Record:
    """The tables of a folder, merged with the results of its runs, which replace their rows.

    Another process may have replaced some of the tables and not yet the others. Raises `UserError`
    where a table cannot be read, or lacks the test cases of a cell.
    """
    results, pretraining, cases, curves = (_read_table(output, file) for file in _TABLES)
    runs, trained = (
        [_read_result(file) for file in sorted(output.glob(f"{kind}/*/{worker.RESULT}"))]
        for kind in (CELLS, PRETRAINING)
    )
    tested = [{"cell": run["row"]["cell"]} | case for run in runs for case in run["cases"]]
    points = [(run["row"]["cell"], *point) for run in runs for point in run["curve"]]
    validated = pd.DataFrame(points, columns=["cell", "step", "score"])
    found = Record(
        _with_rows(results, runs, "cell"),
        _with_rows(pretraining, trained, "pretraining"),
        _with_columns(_by_case(cases), _by_case(pd.DataFrame(tested))),
        _with_columns(_by_step(curves), _by_step(validated)).sort_index(),
    )
    if lacking := found.known().difference(found.cases):
        raise UserError(
            f"{_path(output, CASES)}: has no column {min(lacking)}; restore the file, or remove "
            f"the row of that cell from {RESULTS} to run it again"
        )
    return found


def write(output: Path, record: Record) -> None:
    """Replaces the four tables, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    tables = *record[:3], record.curves.T.rename_axis("cell")
    for file, table, index in zip(_TABLES, tables, (False, False, True, True), strict=True):
        path = _path(output, file)
        # Without the time of day: the same table has the same bytes.
        packed = {"method": "gzip", "mtime": 1} if path.suffix == ".gz" else None
        with atomic_write(path) as partial:
            table.to_csv(
                partial,
                index=index,
                lineterminator="\n",
                encoding="utf-8",
                compression=packed,
            )


def _path(output: Path, file: str) -> Path:
    """That of a table, or of its compressed form where that exists; `UserError` for both."""
    plain, packed = output / file, output / f"{file}.gz"
    if plain.exists() and packed.exists():
        raise UserError(f"{plain}: is beside {packed.name}; remove the older of the two")
    return packed if packed.exists() else plain


def update(output: Path) -> None:
    """Brings the tables up to date while other processes may do the same.

    A process that has replaced newer tables by older ones notices, and reads the runs again.
    """
    found, written = read(output), None
    while written is None or not all(map(pd.DataFrame.equals, found, written)):
        write(output, found)
        found, written = read(output), found


def restrict(record: Record, names: Iterable[str]) -> Record:
    """The cells of these names, and the pretraining that they use."""
    results = record.results[record.results["cell"].isin(list(names))]
    used = record.pretraining["pretraining"].isin(results["pretraining"])
    cases, curves = (_with_columns(table.filter(results["cell"])) for table in record[2:])
    return Record(results, record.pretraining[used], cases, curves)


def _read_result(file: Path) -> dict[str, Any]:
    """The result of a run: `row`, `cases` and `curve`, see `worker.run`. Raises `UserError`."""
    remedy = "remove it to run the job again"
    result = documents.read_object(file, remedy)
    with documents.fields(file, remedy):
        named = "cell" if file.parent.parent.name == CELLS else "pretraining"
        str(result["row"][named])
        for case in result["cases"]:
            str(case["id"])
        for point in result["curve"]:
            step, score = point
            int(step), score is None or float(score)
    return result


def _read_table(output: Path, file: str) -> pd.DataFrame:
    path = _path(output, file)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := [name for name in _TABLES[file][:1] if name not in table]:
            raise ValueError(f"no column {missing[0]}")
        return table
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=_TABLES[file], dtype=str)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); remove it to merge anew") from None


def _with_rows(stored: pd.DataFrame, runs: Iterable[dict[str, Any]], key: str) -> pd.DataFrame:
    """The table with the rows of the runs, which replace those of the same key."""
    rows = [{name: _text(value, "") for name, value in run["row"].items()} for run in runs]
    table = pd.concat([stored, pd.DataFrame(rows, columns=None if rows else stored.columns)])
    return table.drop_duplicates(key, keep="last", ignore_index=True).fillna("").astype(str)


def _with_columns(stored: pd.DataFrame, *new: pd.DataFrame) -> pd.DataFrame:
    """The table with new columns, which replace those of the same name; no empty ones."""
    kept = stored.drop(columns=[cell for part in new for cell in part], errors="ignore")
    table = pd.concat([part for part in (kept, *new) if part.size] or [kept], axis=1).fillna("")
    return table.loc[(table != "").any(axis=1), (table != "").any()].astype(str)


def _by_case(table: pd.DataFrame) -> Any:
    """`Record.cases` of cases.csv, or of a row per cell and case as runs and older files have."""
    keys = [key for key in _TABLES[CASES] if key in table]
    if "cell" not in table:
        return table.set_index(keys) if keys else table
    long = table.set_index(["cell", *keys]).map(_text, undefined="nan")
    return long.rename_axis(columns="score").stack(future_stack=True).unstack("cell", sort=False)


def _by_step(table: pd.DataFrame) -> pd.DataFrame:
    """`Record.curves` of curves.csv, or of a row per cell and step as runs and older files have."""
    if "step" not in table:
        return table.set_index("cell").T.rename(index=int) if "cell" in table else table
    long = table.astype({"step": int}).set_index(["step", "cell"]).map(_text, undefined="nan")
    return long["score"].unstack("cell", sort=False)


def _text(value: Any, undefined: str) -> str:
    return undefined if value in (None, "") else str(value)
