"""Tables in the paper's layout, ours beside the published numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssl3d.experiments.analysis.findings import PLATEAU, Findings, Place, in_words
from ssl3d.experiments.analysis.published import TABLES, Published
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.analysis.statistics import Comparison
from ssl3d.experiments.analysis.templates import sentences
from ssl3d.experiments.engine.study import DOUBLES, Study

NONE = "–"
PAPER = "paper"
BRATS = " (BraTS)"  # a column scored as the challenge does, beside our own
Columns = Mapping[str, tuple[str, str]]  # heading -> amount of labels and name of a score


class Table(NamedTuple):
    """A table ready to be typeset."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # plain text; the first column names the rows
    notes: Sequence[str] = ()  # below it
    bold: frozenset[tuple[int, int]] = frozenset()  # (row, column) of our best in each column


def all_tables(study: Study, record: Record, findings: Findings, elsewhere: bool) -> list[Table]:
    """The tables of a study, pretrained on other data or not, without the empty ones."""
    tables = [scores_by_label(study, findings, elsewhere)]
    if study.beside not in ("", study.columns[0].name):
        tables.append(scores_by_label(study, findings, elsewhere, study.beside))
    if len(study.columns) > 1:
        tables.append(scores_by_column(study, findings))
    tables += [comparisons(findings), controls(findings), convergence(findings)]
    if study.published_convergence:
        tables.append(published_convergence(TABLES[study.published_convergence]))
    tables += [plateau(study, findings), beyond(findings), pretrainings(record), costs(findings)]
    return [table for table in tables if table.rows]


def scores_by_label(
    study: Study, findings: Findings, elsewhere: bool = False, score: str = ""
) -> Table:
    """Methods x amounts of labels, by the compared score or another, with the paper's if alike."""
    score = score or study.columns[0].name
    published = TABLES[study.published].like_ours(elsewhere) if score == study.beside else None
    about = " on the test set, by labelled training subjects"
    if published and score != study.columns[0].name:
        about = f": {published.score}"
    return _scores(score + about, findings, {a: (a, score) for a in findings.labels}, published)


def scores_by_column(study: Study, findings: Findings) -> Table:
    """Methods x scores at the largest amount of labels, as the paper's Table 1."""
    amount = findings.labels[-1]
    # The paper used all labels: its scores do not compare with ours of fewer.
    published = TABLES.get(study.published_scores) if amount == "all" else None
    columns = {column.name: (amount, column.name) for column in study.columns}
    return _scores(f"Scores with {in_words(amount)}", findings, columns, published)


def _scores(title: str, findings: Findings, columns: Columns, published: Published | None) -> Table:
    """Methods x columns: ours beside the paper's, then the paper's other rows."""
    amounts = {amount for amount, _ in columns.values()}
    keys = [key for key in findings.rows if any((key, a) in findings.runs for a in amounts)]
    ours = [key.method for key in keys]
    others = [name for name in (published.rows if published else ()) if name not in ours]
    header, bold, cells = ["method"], set(), [[*map(findings.label, keys), *others]]
    for column, place in columns.items():
        values = [findings.values(key, *place) for key in keys]
        if (best := _best(values)) is not None:
            bold.add((best, len(header)))
        header.append(column)
        cells.append([_counted(own, findings.repetitions) for own in values] + [NONE] * len(others))
        if published:
            header.append(PAPER)
            theirs = column.removesuffix(BRATS)  # presumably scored by the challenge's portal
            cells.append([published.shown(name, theirs) for name in [*ours, *others]])
    rows, notes = tuple(zip(*cells, strict=True)), sentences("scores", findings, published)
    return Table(title[:1].upper() + title[1:], tuple(header), rows, notes, frozenset(bold))


def comparisons(findings: Findings) -> Table:
    """Each method against scratch, with the verdict."""
    return _against("Against scratch", findings, findings.comparisons, "comparisons", findings)


def controls(findings: Findings) -> Table:
    """The methods that check the study, against scratch."""
    return _against("Controls against scratch", findings, findings.controls, "controls")


def _against(
    title: str, findings: Findings, found: Mapping[Place, Comparison], name: str, *about: object
) -> Table:
    rows = tuple(
        (
            findings.label(key),
            labels,
            one.against,
            one.verdict(),
            findings.replication((key, labels)),
        )
        for (key, labels), one in found.items()
    )
    header = ("method", "labels", "against", "verdict", "replication")
    return Table(title, header, rows, sentences(name, *about))


def convergence(findings: Findings) -> Table:
    """Steps to 95 % of scratch's final validation score, median over repetitions."""
    found = findings.convergence
    amounts = [a for a in findings.labels if any(a == amount for _, amount in found)]
    rows = tuple(
        (findings.label(key), *(_steps(found.get((key, amount), ())) for amount in amounts))
        for key in findings.rows
        if any((key, amount) in found for amount in amounts)
    )
    title = "Steps to reach 95 % of scratch's final validation score"
    return Table(title, ("method", *amounts), rows, sentences("convergence", findings))


def published_convergence(published: Published) -> Table:
    """The paper's convergence: scores after some epochs instead of steps to a score."""
    columns = published.columns
    rows = ((name, *(published.shown(name, x) for x in columns)) for name in published.rows)
    notes = sentences("paper", published)
    return Table("Convergence in the paper", ("method", *columns), tuple(rows), notes)


def plateau(study: Study, findings: Findings) -> Table:
    """The effect of doubled steps on scratch."""
    names = [column.name for column in study.columns]
    rows = []
    for key, amount in findings.places:
        name, own, scratch = findings.with_scratch((key, amount))
        if name and key.method in DOUBLES.values():
            change = own[names].apply(pd.to_numeric) - scratch[names].apply(pd.to_numeric)
            changes = change.mean(skipna=False).map("{:+.4f}".format).replace("+nan", NONE)
            found = findings.plateau.get((name, amount))
            interval = NONE
            if found and len(own) > 1:
                interval = "[{:+.4f}, {:+.4f}]".format(*found.interval)
            verdict = f"{where(found)}at its plateau in {names[0]}" if found else NONE
            if findings.missing[0]:
                verdict = "no verdict yet"
            rows.append((name, amount, *changes, interval, str(len(own)), verdict))
    header = ("method", "labels", *names, "interval", "repetitions", "verdict")
    notes = sentences("plateau", names[0])
    return Table("Scratch with twice the steps", header, tuple(rows), notes)


def beyond(findings: Findings) -> Table:
    """The gains, compared with scratch with twice the steps."""
    rows = tuple(
        (findings.label(key), amount, longer, found.verdict(), str(found.repetitions))
        for (key, amount, longer), found in findings.beyond.items()
    )
    header = ("method", "labels", "against", "verdict", "repetitions")
    title = "Gains against scratch trained longer"
    return Table(title, header, rows, sentences("beyond"))


def pretrainings(record: Record) -> Table:
    """The pretrainings, and how well the proxy task was learned."""
    rows = []
    for row in record.pretraining.to_dict("records"):
        seen = row["cases"] + " (transductive)" * (row["transductive"] == "True")
        scores = [row.get(key) for key in ("trained_score", "untrained_score", "chance")]
        shown = [f"{float(score):.3f}" if score else NONE for score in scores]
        minutes, memory = float(row["seconds"]) / 60, float(row["peak_memory_mb"]) / 1024
        rows.append((row["method"], row["steps"], seen, *shown, f"{minutes:.1f}", f"{memory:.1f}"))
    header = ("pretraining", "steps", "cases", "score", "untrained", "chance", "minutes", "GB")
    return Table("Pretraining", header, tuple(rows), sentences("pretraining"))


def costs(findings: Findings) -> Table:
    """Steps, time and memory of a cell of each method, mean over repetitions."""
    rows = []
    for key in findings.rows:
        places: list[Place] = [(key, a) for a in findings.labels if (key, a) in findings.runs]
        steps, device, wall = (
            ", ".join(f"{np.mean(findings.values(*place, name)):.0f}" for place in places)
            for name in ("steps", "device_seconds", "seconds")
        )
        memory = max(max(findings.values(*place, "peak_memory_mb")) for place in places) / 1024
        rows.append((findings.label(key), steps, device, wall, f"{memory:.1f}"))
    header = ("method", "steps", "device seconds", "seconds", "peak GB")
    return Table("Cost of a cell", header, tuple(rows), sentences("costs"))


def where(doubled: Comparison) -> str:
    """What goes before "at its plateau": nothing, or why not."""
    if doubled.within(PLATEAU):
        return ""
    return "not " if doubled.shown() else "not shown to be "


def _counted(values: Sequence[float], repetitions: int) -> str:
    """Mean ± deviation, with the number of repetitions where others have more."""
    if not len(values) or math.isnan(mean := float(np.mean(values))):
        return NONE
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    few = f" ({len(values)})" if len(values) < repetitions else ""
    return f"{mean:.3f}{deviation}{few}"


def _best(rows: Sequence[Sequence[float]]) -> int | None:
    """The row with the highest mean, among those with the most repetitions."""
    most = max(map(len, rows), default=0)
    means = [
        (float(np.mean(row)), i)
        for i, row in enumerate(rows)
        if row and len(row) == most and not np.isnan(row).any()
    ]
    return max(means)[1] if len(means) > 1 else None


def _steps(values: Sequence[float]) -> str:
    if not values:
        return NONE
    reached, median = np.isfinite(values).sum(), float(np.median(values))
    text = f"{median:.0f}" if math.isfinite(median) else "never"
    return text + (f" ({reached} of {len(values)})" if reached < len(values) else "")
