"""The results of Taleb et al. (NeurIPS 2020, arXiv 2006.03829 v3), with their caveats.

published.csv has a row per number: its table, method (`entry`) and column; a tilde marks a rough
reading of a figure. Rows without a column describe the table: `source`, `score` and `note`s, and
where methods were pretrained both on the `own` downstream data and on `other`, the endings of their
names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Published:
    """A table (or figure) of the paper."""

    source: str  # where in the paper
    score: str  # as the paper defines it
    columns: tuple[str, ...]  # amounts of labels, or names of scores
    rows: Mapping[str, Mapping[str, str]]  # method -> column -> number, "~" before rough ones
    caveats: tuple[str, ...]  # what a reader must know before comparing
    endings: tuple[str, ...] = ("", "")  # of names: pretrained on the own data, on other data

    def like_ours(self, elsewhere: bool) -> Self:
        """The rows pretrained on other data, or not, under the names of our methods."""
        ending = self.endings[elsewhere]
        rows = {name.removesuffix(ending): numbers for name, numbers in self.rows.items()}
        return dataclasses.replace(self, rows=rows)

    def shown(self, method: str, column: str) -> str:
        """A number as the tables show it: "≈" before rough ones, "–" for none."""
        text = self.rows.get(method, {}).get(column, "")
        return f"{'≈ ' * text.startswith('~')}{float(text.lstrip('~')):.3f}" if text else "–"


def _read(table: pd.DataFrame) -> Published:
    numbers, about = table[table["column"] != ""], table[table["column"] == ""]
    rows = {
        str(method): dict(zip(own["column"], own["value"], strict=True))
        for method, own in numbers.groupby("entry", sort=False)
    }
    texts = {name: tuple(own["value"]) for name, own in about.groupby("entry")}
    endings = texts.get("own", ("",)) + texts.get("other", ("",))
    columns = tuple(numbers["column"].unique())
    return Published(texts["source"][0], texts["score"][0], columns, rows, texts["note"], endings)


_FILE = pd.read_csv(Path(__file__).with_suffix(".csv"), dtype=str, keep_default_na=False)
TABLES = {str(name): _read(table) for name, table in _FILE.groupby("table")}
