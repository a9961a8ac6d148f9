"""report.html: what was done and what came of it, in one file that links to nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.findings import Findings, Key
from experiments.analysis.results_table import Record
from experiments.analysis.tables import Table, capital
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D
from ssl3d.atomic import atomic_write

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: left }
.wide { overflow-x: auto }
.notes { font-size: 0.85rem; color: #555 }
.verdict { background: #f4f4f0; padding: 0.8rem 1.2rem; border-left: 4px solid #888 }
img { max-width: 100% }
code { font-size: 0.85rem; overflow-wrap: anywhere }
"""


def summary(findings: Findings) -> list[str]:
    """The verdicts in a few sentences, those with the fewest labels first."""
    words = []
    for amount in findings.labels:
        own = [(key, c) for (key, a), c in findings.comparisons.items() if a == amount]
        for text, sign in (("better", 1), ("worse", -1)):
            found: dict[str, list[str]] = {}
            for key, c in own:
                if c.shown() == sign:
                    found.setdefault(findings.against[key, amount], []).append(
                        f"{findings.label(key)} ({c.difference:+.3f}, corrected interval "
                        f"{c.low_holm:+.3f} to {c.high_holm:+.3f})"
                    )
            words += [
                f"With {amount} labels significantly {text} than {other}: {'; '.join(names)}."
                for other, names in found.items()
            ]
        words += [
            f"With {amount} labels {method} is not at its plateau: twice the steps change it by "
            f"{doubled.changes[0]:+.3f}."
            for (method, a), doubled in findings.plateau.items()
            if a == amount and doubled.moved
        ]
        words += [
            f"With {amount} labels {findings.label(key)} against "
            f"{DOUBLES[findings.against[key, amount]]}, scratch with twice the steps, in "
            f"{comparison.repetitions} repetitions: {comparison.verdict()}."
            for (key, a), comparison in findings.beyond.items()
            if a == amount
        ]
        pretrained = [c for key, c in own if METHODS[key.method].task]
        if pretrained and not any(c.shown() > 0 for c in pretrained):
            words.append(f"With {amount} labels no gain of any pretraining over scratch is shown.")
    if not findings.comparisons:
        words.append(
            "Nothing to compare yet: scratch or every other method is missing, or there is but one "
            "repetition with one test subject."
        )
    return words


def write(
    file: Path,
    title: str,
    about: Sequence[tuple[str, str]],
    notes: Sequence[str],
    findings: Findings,
    tables: Sequence[Table],
    pictures: Sequence[Path],
    record: Record,
) -> None:
    """Writes the page.

    Args:
      about: pairs of what was done and how: data, sizes, machine, time.
      notes: sentences that a reader must not miss, e.g. that the study was cut down.
      pictures: PNG files, which go into the page.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p><strong>{html.escape(note)}</strong></p>" for note in notes]
    parts.append("<h2>Verdict</h2><div class=verdict>")
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in summary(findings)]
    parts.append("</div><h2>What was done</h2>")
    parts.append(_html_table(Table("", ("", ""), tuple(about))))
    methods = tuple(
        (name, METHODS[name].about) for name in dict.fromkeys(key.method for key in findings.rows)
    )
    parts.append("<h2>Methods</h2>" + _html_table(Table("", ("method", "weights"), methods)))
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        name = picture.stem.replace("_", " ")
        parts.append(f"<h2>{name.capitalize()}</h2>")
        parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    parts.append(
        "<p class=notes>Bands: 95 % intervals. Data efficiency: Student's t over repetitions and "
        "resampled test subjects, as far as the axis goes. Convergence: over repetitions, within "
        "what was observed"
        + (
            "; 2D networks are validated on slices, their curves compare with one another alone"
            if findings.sliced
            else ""
        )
        + ".</p>"
    )
    for table in tables:
        parts.append(f"<h2>{html.escape(capital(table.title))}</h2>")
        parts.append(_html_table(table))
    limits = [*_LIMITS, *_unchecked(findings)]
    parts.append("<h2>Limits</h2><ul>" + "".join(f"<li>{html.escape(x)}" for x in limits))
    parts.append(
        f"</ul><p class=notes>{len(record.results)} cells; every one with its seeds, "
        "steps, times, hashes of its case lists and code version is in results.csv.</p>"
    )
    body = "\n".join(parts)
    with atomic_write(file) as partial:
        partial.write_text(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n",
            encoding="utf-8",
        )


_LIMITS = (
    "Each pretraining was done once, with one seed: the repetitions vary label subsets and the "
    "downstream initial weights, not the pretraining.",
    "Equal steps are not equal computation: a pretraining step costs more or less than a "
    "downstream one. Seconds of either are in the tables.",
)


def _unchecked(findings: Findings) -> list[str]:
    """A gain may be that of an under-trained scratch, where nobody has looked."""
    words = []
    for method in (SCRATCH, SCRATCH_2D):
        amounts = [
            amount
            for amount in findings.labels
            if (Key(method, "random"), amount) in findings.entries
            and (method, amount) not in findings.plateau
        ]
        if amounts:
            words.append(
                f"Whether {method} was trained to its plateau with {', '.join(amounts)} labels was "
                f"not checked here (--methods={method},{DOUBLES[method]} checks it)."
            )
    return words


def _html_table(table: Table) -> str:
    lines = ["<div class=wide><table>"]
    if any(table.header):
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
        lines.append(f"<tr>{cells}</tr>")
    for i, row in enumerate(table.rows):
        cells = "".join(
            f"<td>{'<b>' if (i, j) in table.bold else ''}{html.escape(cell)}"
            f"{'</b>' if (i, j) in table.bold else ''}</td>"
            for j, cell in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</table></div>")
    if table.notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        lines.append(f"<ol class=notes>{items}</ol>")
    return "\n".join(lines)
