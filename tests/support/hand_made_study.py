"""Records of a study made by hand: numbers in, and no run at all."""

import numpy as np
import pandas as pd

from ssl3d.experiments.analysis.published import TABLES, Published
from ssl3d.experiments.analysis.results_table import Record

PUBLISHED = Published(
    source="Figure 0",
    score="Dice of nothing",
    columns=("5%", "all"),
    rows={
        "scratch": {"5%": "0.50", "all": "0.70"},
        "rpl3d": {"5%": "~0.55"},
        "Somebody et al.": {"5%": "0.60", "all": "0.80"},
    },
    caveats=("Nobody knows.",),
)
TABLES["hand made"] = PUBLISHED  # under which a study can name it
CASES = 40


def result(method, labels, repetition, score, steps=6, mode="random", **more):
    return {
        "cell": f"{method}-{labels}-{repetition}",
        "method": method,
        "mode": mode,
        "labels": labels,
        "repetition": str(repetition),
        "training_cases": {"5%": "2", "all": "8"}[labels],
        "steps": str(steps),
        "pretraining": f"{method}-x" if mode == "finetune" else "",
        "dice": str(score),
        "WT": str(score - 0.1),
        "seconds": "60",
        "device_seconds": "30",
        "peak_memory_mb": "1024",
    } | more


def record_of(results):
    """Cases scatter around the cell's score, alike in all; curves rise to it, two steps apart."""
    noise = np.random.default_rng(0).normal(0, 0.05, CASES)
    noise -= noise.mean()

    def own(row):
        return np.random.default_rng(int(row["repetition"])).normal(0, 0.002, CASES)

    cases = [
        {"id": f"c{i:02d}", "subject": f"s{i}", "score": "dice"}
        | {row["cell"]: str(float(row["dice"]) + noise[i] + own(row)[i]) for row in results}
        for i in range(CASES)
    ]
    curves = [
        {"cell": row["cell"]}
        | {str(s): str(float(row["dice"]) * s / 6) for s in range(0, int(row["steps"]) + 1, 2)}
        for row in results
    ]
    before = {
        "pretraining": "rpl3d-x",
        "method": "rpl3d",
        "steps": "4",
        "cases": "8",
        "transductive": "True",
        "trained_score": "0.91",
        "untrained_score": "0.05",
        "chance": "",
        "seconds": "120",
        "peak_memory_mb": "2048",
    }
    return Record(
        pd.DataFrame(results).fillna(""),
        pd.DataFrame([before]),
        pd.DataFrame(cases).set_index(["id", "subject", "score"]),
        pd.DataFrame(curves).set_index("cell").T.rename(index=int).fillna(""),
    )


def rows_of(record):
    """The rows of results.csv, to be changed and put back by `with_rows`."""
    return record.results.to_dict("records")


def with_rows(record, rows):
    """A record with other rows of results.csv, and the same cases and curves."""
    return record._replace(results=pd.DataFrame(rows).fillna(""))


def with_2d(record, method, score):
    """Rows of a 2D method beside those that there are, its curves on slices above all."""
    mode = "random" if method.startswith("scratch2d") else "finetune"
    own = [result(method, "5%", number, score + number / 100, mode=mode) for number in (1, 2)]
    more = record_of(rows_of(record) + own)
    curves = more.curves.copy()
    for cell in curves.filter(like="2d"):
        curves[cell] = curves[cell].map(lambda text: text and str(float(text) + 0.5))
    return more._replace(curves=curves)
