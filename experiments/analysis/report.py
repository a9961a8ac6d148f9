"""The report of a study: tables.md, tables.tex, figures/ and report.html."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from ssl3d.atomic import atomic_write
from ssl3d.errors import UserError
from ssl3d.experiments.analysis import figures, findings, tables
from ssl3d.experiments.analysis.findings import Findings
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.analysis.templates import render, sentences
from ssl3d.experiments.engine import grid
from ssl3d.experiments.engine.study import Study, StudyData

_FOLDERS = ("--data", "--output", "--pretrain-data", "--source")


def write(
    plan: StudyData, found: Record, missing: tuple[int, int], typed: str, output: Path
) -> None:
    """Writes tables, figures and page. Raises `UserError` if there is no finished cell.

    `missing` are planned cells, and of how many; `typed` continues the study.
    """
    if found.results.empty:
        raise UserError(f"{output}: no finished cell yet; run the study first")
    study = plan.study
    facts = findings.find(study, found, len(plan.dataset.classes), missing=missing)
    equal_steps_only = sentences("equal_steps_only", facts)
    summary = sentences("summary", facts)
    about = sentences("about", study, plan, found, facts, typed)
    pictures = figures.write(output / "figures", study, facts)
    cases = predictions(facts, output)
    shown = {
        "study": study,
        "equal_steps_only": equal_steps_only,
        "opening": [
            text.split(": ", 1) for text in sentences("opening", study, plan, found, facts)
        ],
        "notes": sentences("notes", plan, facts),
        "summary": summary,
        "about": [text.split(": ", 1) for text in about],
        "pictures": {picture.stem.replace("_", " "): _encoded(picture) for picture in pictures},
        "predictions": {title: _encoded(picture) for title, picture in cases.items()},
        "facts": facts,
        "tables": tables.all_tables(study, found, facts, plan.elsewhere),
        "unchecked": [*sentences("encoders", facts), *sentences("unchecked", facts)],
    }
    for name in ("tables.md", "tables.tex", "report.html"):
        with atomic_write(output / name) as partial:
            partial.write_text(render(name, **shown), encoding="utf-8")
    print(*equal_steps_only, *summary, f"report: {output / 'report.html'}", sep="\n", flush=True)


def predictions(facts: Findings, output: Path) -> dict[str, Path]:
    """The median test case (of grades: the mistakes) of each row's first cell, where it is kept."""
    found = {}
    for key, amount in facts.places:
        cell = facts.runs[key, amount]["cell"].iloc[0]
        folder = output / grid.CELLS / cell / "run" / "evaluation"
        pictures = [folder / name for name in ("median.png", "mistakes.png")]
        if shown := next(filter(Path.exists, pictures), None):
            found[f"{facts.label(key)}, {findings.in_words(amount)}"] = shown
    return found


def _encoded(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()


def as_typed(study: Study, arguments: Sequence[str]) -> str:
    """The command that continues the study, without the folders of this machine."""
    typed = [text for text in arguments if text != "--report-only"]
    shown = [
        "DIR" if before in _FOLDERS else re.sub(f"^({'|'.join(_FOLDERS)})=.*", r"\1=DIR", text)
        for before, text in zip(["", *typed], typed, strict=False)
    ]
    return " ".join([f"python -m ssl3d.study {study.name}", *shown])
