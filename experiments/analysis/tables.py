"""Tables in the paper's layout, ours beside the published numbers, as Markdown and as LaTeX."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.analysis import statistics
from experiments.analysis.findings import PLATEAU, Doubled, Findings, Key
from experiments.analysis.published import Published, Value
from experiments.analysis.results_table import Record, numbers
from experiments.engine.study import DOUBLES, Study

NONE = "–"
PAPER = "paper"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table ready to be set.

    Attributes:
      title: above it.
      header, rows: cells as plain text; the first column names the rows.
      notes: below it.
      bold: (row, column) of the best of ours in each column.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()


def all_tables(study: Study, record: Record, findings: Findings) -> list[Table]:
    """The tables of a study, those without anything to show left out."""
    tables = [scores_by_label(study, findings)]
    if study.beside and study.beside != study.columns[0].name:
        tables.append(beside_published(study, record, findings))
    if len(study.columns) > 1:
        tables.append(scores_by_column(study, record, findings))
    tables += [comparisons(findings), convergence(findings)]
    if study.published_convergence:
        tables.append(published_convergence(study.published_convergence))
    tables += [
        plateau(study, findings),
        beyond(findings),
        pretrainings(record),
        costs(findings, record),
    ]
    return [table for table in tables if table.rows]


def scores_by_label(study: Study, findings: Findings) -> Table:
    """Methods x amounts of labels: mean ± deviation over repetitions, and the paper's."""
    score = study.columns[0].name
    return _scores(
        f"{score} on the test set, by labelled training subjects",
        findings,
        findings.labels,
        {place: entry.values for place, entry in findings.entries.items()},
        study.published if study.beside == score else None,
    )


def beside_published(study: Study, record: Record, findings: Findings) -> Table:
    """The score that is defined as the published one is, where ours is another."""
    scores = {place: _of(record, *place, study.beside) for place in findings.entries}
    title = f"{study.beside}: {study.published.score}"
    return _scores(title, findings, findings.labels, scores, study.published)


def scores_by_column(study: Study, record: Record, findings: Findings) -> Table:
    """Methods x scores at the largest amount of labels, as the paper's Table 1."""
    amount = findings.labels[-1]
    names = [column.name for column in study.columns]
    scores = {
        (key, name): _of(record, key, amount, name)
        for key in findings.rows
        if (key, amount) in findings.entries
        for name in names
    }
    # The paper's are of all labels: beside fewer of ours they would compare nothing.
    published = study.published_scores if amount == "all" else None
    title = f"scores with {amount} labelled training subjects"
    return _scores(title, findings, names, scores, published)


def _scores(
    title: str,
    findings: Findings,
    columns: Sequence[str],
    scores: Mapping[tuple[Key, str], Sequence[float]],
    published: Published | None,
) -> Table:
    """Methods x columns: ours, beside each the paper's, and the rows that the paper alone has."""
    keys = [key for key in findings.rows if any((key, column) in scores for column in columns)]
    header, rows, width = ["method"], [], 2 if published else 1
    for column in columns:
        header += [column, PAPER] if published else [column]
    for key in keys:
        row = [findings.label(key)]
        for column in columns:
            row.append(_counted(scores.get((key, column), ()), findings))
            if published:
                row.append(_published(published.value(key.method, column)))
        rows.append(tuple(row))
    bold = {
        (best, 1 + width * place)
        for place, column in enumerate(columns)
        if (best := _best([scores.get((key, column), ()) for key in keys])) is not None
    }
    if published:
        rows += _only_published(published, keys, columns)
    notes = (_over_repetitions(findings), *_notes(published))
    return Table(title, tuple(header), tuple(rows), notes, frozenset(bold))


def comparisons(findings: Findings) -> Table:
    """Each method against scratch, with the verdict in words."""
    rows = tuple(
        (
            findings.label(key),
            amount,
            findings.against[key, amount],
            findings.comparisons[key, amount].verdict(),
        )
        for amount in findings.labels
        for key in findings.rows
        if (key, amount) in findings.comparisons
    )
    notes = [
        "difference [interval at the level of Holm's procedure over the methods at this amount of "
        "labels], over repetitions and resampled test subjects, paired"
    ]
    if findings.sliced:
        notes.append(
            "2D networks on slices are compared with scratch2d, which has the same network; that "
            "one, and all of them where it was not run, with scratch in 3D"
        )
    if findings.repetitions < 10:
        notes.append(statistics.FEW_REPETITIONS)
    header = ("method", "labels", "against", "verdict")
    return Table("against scratch", header, rows, tuple(notes))


def convergence(findings: Findings) -> Table:
    """Steps to 95 % of scratch's final validation score, median over repetitions."""
    amounts = [a for a in findings.labels if any(a == b for _, b in findings.convergence)]
    rows = []
    for key in findings.rows:
        cells = [_steps(findings.convergence.get((key, amount), ())) for amount in amounts]
        if any(cell != NONE for cell in cells):
            rows.append((findings.label(key), *cells))
    notes = [
        "median over repetitions, to the next validation; (n of m) reached it",
        "downstream steps alone: those of the pretraining are not counted, see its table",
    ]
    if findings.sliced:
        notes.append(
            "2D networks are validated on slices: theirs are steps to 95 % of scratch2d's score, "
            "left out where it was not run"
        )
    title = "steps to reach 95 % of scratch's final validation score"
    return Table(title, ("method", *amounts), tuple(rows), tuple(notes))


def published_convergence(published: Published) -> Table:
    """What the paper has of convergence: no steps to a score, but scores after some epochs."""
    rows = tuple(
        (name, *(_published(published.value(name, column)) for column in published.columns))
        for name in published.rows
    )
    title = "convergence in the paper"
    return Table(title, ("method", *published.columns), rows, _notes(published))


def plateau(study: Study, findings: Findings) -> Table:
    """What doubling its steps adds to scratch."""
    names = [column.name for column in study.columns]
    rows = tuple(
        (
            method,
            amount,
            *(NONE if math.isnan(change) else f"{change:+.4f}" for change in doubled.changes),
            NONE if math.isnan(doubled.low) else f"[{doubled.low:+.4f}, {doubled.high:+.4f}]",
            str(doubled.repetitions),
            _at_plateau(doubled, names[0]),
        )
        for (method, amount), doubled in findings.plateau.items()
    )
    notes = (
        f"change of each score, mean over the repetitions; 95 % interval of that of {names[0]}",
        f"at its plateau: less than {PLATEAU} either way",
    )
    header = ("method", "labels", *names, "interval", "repetitions", "verdict")
    return Table("scratch with twice the steps", header, rows, notes)


def beyond(findings: Findings) -> Table:
    """Does a gain hold against scratch with twice the steps?"""
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
        "the methods that gain, with the steps they had, in the repetitions that both have; "
        "corrected for all methods at this amount of labels",
    )
    header = ("method", "labels", "against", "verdict", "repetitions")
    return Table("gains against scratch with twice the steps", header, rows, notes)


def _at_plateau(doubled: Doubled, name: str) -> str:
    if math.isnan(doubled.changes[0]):
        return NONE
    return f"{'not ' if doubled.moved else ''}at its plateau in {name}"


def pretrainings(record: Record) -> Table:
    """What was pretrained, and how well the proxy task was learned."""
    header = ("pretraining", "steps", "cases", "score", "untrained", "chance", "minutes", "GB")
    rows = tuple(
        (
            row["method"],
            row["steps"],
            row["cases"] + (" (transductive)" if row["transductive"] == "True" else ""),
            *(_number(row.get(key, "")) for key in ("trained_score", "untrained_score", "chance")),
            f"{float(row['seconds']) / 60:.1f}",
            f"{float(row['peak_memory_mb']) / 1024:.1f}",
        )
        for row in record.pretraining
    )
    notes = ("score: accuracy of the proxy task on validation cases (Dice of a segmentation)",)
    return Table("pretraining", header, rows, notes)


def costs(findings: Findings, record: Record) -> Table:
    """What a cell of each method took with each amount of labels, mean over repetitions."""
    rows = []
    for key in findings.rows:
        amounts = [amount for amount in findings.labels if (key, amount) in findings.entries]
        steps, device, wall = (
            ", ".join(f"{np.mean(_of(record, key, amount, name)):.0f}" for amount in amounts)
            for name in ("steps", "device_seconds", "seconds")
        )
        memory = max(max(_of(record, key, amount, "peak_memory_mb")) for amount in amounts) / 1024
        rows.append((findings.label(key), steps, device, wall, f"{memory:.1f}"))
    header = ("method", "steps", "device seconds", "seconds", "peak GB")
    notes = (
        "several numbers: of the amounts of labels, from the fewest on",
        "device seconds: training, waits for data too; seconds: also compilation, validation, test",
        "peak GB: of an accelerator, or without one of the process",
    )
    return Table("what a cell took", header, tuple(rows), notes)


def markdown(tables: Sequence[Table], introduction: str) -> str:
    """All tables as one Markdown document."""
    parts = [introduction]
    for table in tables:
        lines = [f"## {capital(table.title)}", ""]
        lines.append("| " + " | ".join(table.header) + " |")
        lines.append("|" + "---|" * len(table.header))
        for i, row in enumerate(table.rows):
            cells = [f"**{cell}**" if (i, j) in table.bold else cell for j, cell in enumerate(row)]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(table.notes, 1))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table], limits: Sequence[str] = ()) -> str:
    """All tables as LaTeX, for a document that loads booktabs.

    Args:
      limits: of the whole study, below each table, as each may be taken out alone.
    """
    return "\n".join(
        _latex_table(dataclasses.replace(table, notes=(*table.notes, *limits))) for table in tables
    )


def _latex_table(table: Table) -> str:
    # Sentences need lines that break.
    columns = "".join("p{8cm}" if name == "verdict" else "l" for name in table.header)
    lines = [
        "\\begin{table}",
        f"\\caption{{{_escape(capital(table.title))}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(map(_escape, table.header)) + " \\\\",
        "\\midrule",
    ]
    for i, row in enumerate(table.rows):
        cells = [
            f"\\textbf{{{_escape(cell)}}}" if (i, j) in table.bold else _escape(cell)
            for j, cell in enumerate(row)
        ]
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {_escape(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "–": "--",
    "~": r"\textasciitilde{}",
    **{character: "\\" + character for character in "%_&#$"},
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _counted(values: Sequence[float], findings: Findings) -> str:
    """Mean ± deviation, and of how many repetitions where others have more."""
    if not len(values) or math.isnan(mean := float(np.mean(values))):
        return NONE
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    few = f" ({len(values)})" if len(values) < findings.repetitions else ""
    return f"{mean:.3f}{deviation}{few}"


def _over_repetitions(findings: Findings) -> str:
    if findings.repetitions == 1:
        return "a single repetition, in bold the highest of ours"
    few = any(len(entry.values) < findings.repetitions for entry in findings.entries.values())
    return (
        f"mean ± standard deviation over {findings.repetitions} repetitions"
        + (" (or as many as the brackets say; only means of as many compare)" if few else "")
        + ", in bold the highest of ours"
    )


def _published(value: Value | None) -> str:
    return NONE if value is None else ("≈ " if value.rough else "") + f"{value.number:.3f}"


def _only_published(
    published: Published, keys: Sequence[Key], columns: Sequence[str]
) -> list[tuple[str, ...]]:
    """Rows that the paper has and we have not."""
    ours = {key.method for key in keys}
    return [
        (
            name,
            *(
                cell
                for column in columns
                for cell in (NONE, _published(published.value(name, column)))
            ),
        )
        for name in published.rows
        if name not in ours
    ]


def _notes(published: Published | None) -> tuple[str, ...]:
    if not published:
        return ()
    source = f"{PAPER}: {published.source} of Taleb et al. 2020; {published.score}"
    return (source, *published.caveats)


def _of(record: Record, key: Key, amount: str, score: str) -> list[float]:
    rows = [
        row
        for row in record.results
        if (row["method"], row["mode"], row["labels"]) == (*key, amount)
    ]
    return numbers(sorted(rows, key=lambda row: int(row["repetition"])), score)


def _best(rows: Sequence[Sequence[float]]) -> int | None:
    """The row with the highest mean, of those with the most repetitions: others do not compare."""
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
    reached = [value for value in values if math.isfinite(value)]
    median = float(np.median(values))
    text = f"{median:.0f}" if math.isfinite(median) else "never"
    few = f" ({len(reached)} of {len(values)})" if len(reached) < len(values) else ""
    return text + few


def _number(text: str) -> str:
    return f"{float(text):.3f}" if text else NONE


def capital(text: str) -> str:
    """As the heading of a table: its first letter a capital, the others as they are."""
    return text[:1].upper() + text[1:]
