"""Tables in the paper's layout, ours beside the published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.analysis import statistics
from experiments.analysis.findings import PLATEAU, Findings, Place
from experiments.analysis.published import Published
from experiments.analysis.results_table import Record
from experiments.engine.study import DOUBLES, Study

NONE = "–"
PAPER = "paper"


class Table(NamedTuple):
    """A table ready to be typeset.

    Attributes:
      title: above it.
      header, rows: cells as plain text; the first column names the rows.
      notes: below it.
      bold: (row, column) of our best in each column.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()

    @property
    def heading(self) -> str:
        """The title with a capital; its other letters unchanged."""
        return self.title[:1].upper() + self.title[1:]

    def cells(self, bold: str) -> list[list[str]]:
        """The rows, bold cells in the format `bold`."""
        return [
            [bold.format(cell) if (i, j) in self.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def all_tables(study: Study, record: Record, findings: Findings) -> list[Table]:
    """The tables of a study, without the empty ones."""
    tables = [scores_by_label(study, findings)]
    if study.beside and study.beside != study.columns[0].name:
        tables.append(beside_published(study, findings))
    if len(study.columns) > 1:
        tables.append(scores_by_column(study, findings))
    tables += [comparisons(findings), convergence(findings)]
    if study.published_convergence:
        tables.append(published_convergence(study.published_convergence))
    tables += [
        plateau(study, findings),
        beyond(findings),
        pretrainings(record),
        costs(findings),
    ]
    return [table for table in tables if table.rows]


def scores_by_label(study: Study, findings: Findings) -> Table:
    """Methods x amounts of labels: mean ± deviation over repetitions, and the paper's."""
    score = study.columns[0].name
    title = f"{score} on the test set, by labelled training subjects"
    published = study.published if study.beside == score else None
    return _scores(title, findings, {a: (a, score) for a in findings.labels}, published)


def beside_published(study: Study, findings: Findings) -> Table:
    """The score defined as the published one is, where it is not the compared one."""
    assert study.published
    title = f"{study.beside}: {study.published.score}"
    columns = {amount: (amount, study.beside) for amount in findings.labels}
    return _scores(title, findings, columns, study.published)


def scores_by_column(study: Study, findings: Findings) -> Table:
    """Methods x scores at the largest amount of labels, as the paper's Table 1."""
    amount = findings.labels[-1]
    # The paper used all labels: its scores do not compare with ours of fewer.
    published = study.published_scores if amount == "all" else None
    title = f"scores with {amount} labelled training subjects"
    columns = {column.name: (amount, column.name) for column in study.columns}
    return _scores(title, findings, columns, published)


def _scores(
    title: str,
    findings: Findings,
    columns: Mapping[str, tuple[str, str]],
    published: Published | None,
) -> Table:
    """Methods x columns: ours beside the paper's, then the paper's other rows.

    Args:
      columns: heading -> amount of labels and name of a score.
    """
    amounts = {amount for amount, _ in columns.values()}
    keys = [key for key in findings.rows if any((key, a) in findings.runs for a in amounts)]
    header, rows, bold, width = ["method"], [], [], 2 if published else 1
    for number, (column, place) in enumerate(columns.items()):
        header += [column, PAPER] if published else [column]
        if (best := _best([findings.values(key, *place) for key in keys])) is not None:
            bold.append((best, 1 + width * number))
    for key in keys:
        row = [findings.label(key)]
        for column, place in columns.items():
            row.append(_counted(findings.values(key, *place), findings.repetitions))
            if published:
                row.append(published.shown(key.method, column))
        rows.append(tuple(row))
    if published:
        ours = {key.method for key in keys}
        rows += [
            (name, *(text for column in columns for text in (NONE, published.shown(name, column))))
            for name in published.rows
            if name not in ours
        ]
    notes = (_over_repetitions(findings), *_notes(published))
    return Table(title, tuple(header), tuple(rows), notes, frozenset(bold))


def comparisons(findings: Findings) -> Table:
    """Each method against scratch, with the verdict."""
    rows = tuple(
        (findings.label(key), amount, findings.against[key, amount], comparison.verdict())
        for (key, amount), comparison in findings.comparisons.items()
    )
    notes = [
        "difference [interval at the level of Holm's procedure over the methods at this amount of "
        "labels], paired, over repetitions and resampled test subjects"
    ]
    if findings.sliced:
        notes.append(
            "2D networks on slices are compared with scratch2d, which has the same network; "
            "scratch2d itself, and all of them where it was not run, with 3D scratch"
        )
    if findings.repetitions < 10:
        notes.append(statistics.FEW_REPETITIONS)
    return Table("against scratch", ("method", "labels", "against", "verdict"), rows, tuple(notes))


def convergence(findings: Findings) -> Table:
    """Steps to 95 % of scratch's final validation score, median over repetitions."""
    found = findings.convergence
    amounts = [a for a in findings.labels if any(a == amount for _, amount in found)]
    rows = tuple(
        (findings.label(key), *(_steps(found.get((key, amount), ())) for amount in amounts))
        for key in findings.rows
        if any((key, amount) in found for amount in amounts)
    )
    notes = [
        "median over repetitions, to the next validation; (n of m) reached it",
        "downstream steps only; those of the pretraining are in its table",
    ]
    if findings.sliced:
        notes.append(
            "2D networks are validated on slices: their steps are those to 95 % of scratch2d's "
            "score, omitted where it was not run"
        )
    title = "steps to reach 95 % of scratch's final validation score"
    return Table(title, ("method", *amounts), rows, tuple(notes))


def published_convergence(published: Published) -> Table:
    """The paper's convergence: scores after some epochs instead of steps to a score."""
    rows = tuple(
        (name, *(published.shown(name, column) for column in published.columns))
        for name in published.rows
    )
    header = ("method", *published.columns)
    return Table("convergence in the paper", header, rows, _notes(published))


def plateau(study: Study, findings: Findings) -> Table:
    """The effect of doubled steps on scratch."""
    names = [column.name for column in study.columns]
    rows = []
    for (method, amount), doubled in findings.plateau.items():
        changes = [NONE if math.isnan(change) else f"{change:+.4f}" for change in doubled.changes]
        low, high, count = doubled.low, doubled.high, doubled.repetitions
        interval = NONE if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"
        verdict = f"{'not ' if doubled.moved else ''}at its plateau in {names[0]}"
        verdict = NONE if changes[0] == NONE else verdict
        rows.append((method, amount, *changes, interval, str(count), verdict))
    notes = (
        f"change of each score, mean over repetitions; 95 % interval of the change in {names[0]}",
        f"at its plateau: less than {PLATEAU} in either direction",
    )
    header = ("method", "labels", *names, "interval", "repetitions", "verdict")
    return Table("scratch with twice the steps", header, tuple(rows), notes)


def beyond(findings: Findings) -> Table:
    """The gains, compared with scratch with twice the steps."""
    rows = tuple(
        (
            findings.label(key),
            amount,
            DOUBLES[findings.against[key, amount]],
            comparison.verdict(),
            str(comparison.repetitions),
        )
        for (key, amount), comparison in findings.beyond.items()
    )
    notes = (
        "the methods that gain, with their own number of steps, in the common repetitions; "
        "corrected for all methods at this amount of labels",
    )
    header = ("method", "labels", "against", "verdict", "repetitions")
    return Table("gains against scratch with twice the steps", header, rows, notes)


def pretrainings(record: Record) -> Table:
    """The pretrainings, and how well the proxy task was learned."""
    rows = tuple(
        (
            row["method"],
            row["steps"],
            row["cases"] + (" (transductive)" if row["transductive"] == "True" else ""),
            *(
                f"{float(row[key]):.3f}" if row.get(key) else NONE
                for key in ("trained_score", "untrained_score", "chance")
            ),
            f"{float(row['seconds']) / 60:.1f}",
            f"{float(row['peak_memory_mb']) / 1024:.1f}",
        )
        for row in record.pretraining
    )
    header = ("pretraining", "steps", "cases", "score", "untrained", "chance", "minutes", "GB")
    notes = ("score: accuracy of the proxy task on validation cases (Dice of a segmentation)",)
    return Table("pretraining", header, rows, notes)


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
    notes = (
        "several numbers: one per amount of labels, in ascending order",
        "device seconds: training with waits for data; seconds: also compilation, validation, test",
        "peak GB: of the accelerator, or of the process where there is none",
    )
    return Table("cost of a cell", header, tuple(rows), notes)


def _counted(values: Sequence[float], repetitions: int) -> str:
    """Mean ± deviation, with the number of repetitions where others have more."""
    if not len(values) or math.isnan(mean := float(np.mean(values))):
        return NONE
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    few = f" ({len(values)})" if len(values) < repetitions else ""
    return f"{mean:.3f}{deviation}{few}"


def _over_repetitions(findings: Findings) -> str:
    count = findings.repetitions
    if count == 1:
        return "a single repetition, our highest in bold"
    few = any(len(rows) < count for rows in findings.runs.values())
    counts = " (fewer where in brackets; only means over as many compare)" if few else ""
    return f"mean ± standard deviation over {count} repetitions{counts}, our highest in bold"


def _notes(published: Published | None) -> tuple[str, ...]:
    if not published:
        return ()
    source = f"{PAPER}: {published.source} of Taleb et al. 2020; {published.score}"
    return (source, *published.caveats)


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
