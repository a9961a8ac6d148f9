"""The results of Taleb et al. (NeurIPS 2020, arXiv 2006.03829 v3), with their caveats.

published.csv has a row per number: its table, method (`entry`) and column; a tilde marks a rough
reading of a figure. Rows without a column describe the table: `source`, `score` and `note`s.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pandas as pd

_FILE = pd.read_csv(Path(__file__).with_suffix(".csv"), dtype=str, keep_default_na=False)


@dataclasses.dataclass(frozen=True)
class Published:
    """A table (or figure) of the paper."""

    source: str  # where in the paper
    score: str  # as the paper defines it
    columns: tuple[str, ...]  # amounts of labels, or names of scores
    rows: Mapping[str, Mapping[str, str]]  # method -> column -> number, "~" before rough ones
    caveats: tuple[str, ...]  # what a reader must know before comparing
    # Of the names of rows pretrained on the downstream data themselves and on other data, where the
    # paper has both.
    endings: tuple[str, str] = ("", "")

    def like_ours(self, elsewhere: bool) -> Self:
        """The rows pretrained on other data, or not, under the names of our methods."""
        ending = self.endings[elsewhere]
        rows = {name.removesuffix(ending): numbers for name, numbers in self.rows.items()}
        return dataclasses.replace(self, rows=rows)

    def shown(self, method: str, column: str) -> str:
        """A number as the tables show it: "≈" before rough ones, "–" for none."""
        text = self.rows.get(method, {}).get(column, "")
        return f"{'≈ ' * text.startswith('~')}{float(text.lstrip('~')):.3f}" if text else "–"


def _load(name: str, endings: tuple[str, str] = ("", "")) -> Published:
    table = _FILE[_FILE["table"] == name]
    numbers = table[table["column"] != ""]
    about = table[table["column"] == ""].groupby("entry")["value"].apply(tuple)
    rows = {
        str(method): dict(zip(own["column"], own["value"], strict=True))
        for method, own in numbers.groupby("entry", sort=False)
    }
    columns = tuple(numbers["column"].unique())
    source, score = about["source"][0], about["score"][0]
    return Published(source, score, columns, rows, about["note"], endings)


BRATS_TABLE = _load("brats table")
BRATS_FIGURE = _load("brats figure")
PANCREAS_FIGURE = _load("pancreas figure")
PANCREAS_CONVERGENCE = _load("pancreas convergence")
RETINA_FIGURE = _load("retina figure", (" on Kaggle", " on UK Biobank"))
RETINA_CONVERGENCE = _load("retina convergence")
