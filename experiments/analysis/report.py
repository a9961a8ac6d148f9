"""The report of a study: tables.md, tables.tex, figures/ and report.html."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from experiments.analysis import figures, findings, results_table, tables
from experiments.analysis.findings import Findings, Key
from experiments.analysis.results_table import Record
from experiments.engine import grid
from experiments.engine.grid import Size
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, SCRATCH_2D, Study
from experiments.engine.study_data import StudyData
from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.errors import UserError

_FOLDERS = ("--data", "--output", "--pretrain-data", "--source")
_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "–": "--",
    "~": r"\textasciitilde{}",
    **{character: "\\" + character for character in "%_&#$"},
}


def write(plan: StudyData, found: Record, limits: Sequence[str], typed: str, output: Path) -> None:
    """Writes tables, figures and page. Raises `UserError` if there is no finished cell.

    Args:
      limits: sentences that a reader must not miss, e.g. that the study was cut down.
      typed: the command that continues the study.
    """
    if not found.results:
        raise UserError(f"{output}: no finished cell yet; run the study first")
    study = plan.study
    if study.published:
        study = dataclasses.replace(study, published=study.published.like_ours(plan.elsewhere))
    notes = list(limits)
    if plan.transductive:
        notes.append("Transductive: pretraining saw the images of validation and test cases.")
    facts = findings.find(study, found, len(plan.dataset.classes))
    if facts.mixed:
        names = ", ".join(map(facts.label, facts.mixed))
        notes.append(
            "Run by a version of the code that samples training data differently from that of "
            f"scratch: {names} (draws in results.csv)."
        )
    words = summary(facts)
    pictures = figures.write(output / "figures", study, facts)
    shown = {
        "study": study,
        "notes": notes,
        "summary": words,
        "about": [("to continue", typed), *describe(plan, found, facts)],
        "methods": {key.method: METHODS[key.method].about for key in facts.rows},
        "pictures": {
            picture.stem.replace("_", " "): base64.b64encode(picture.read_bytes()).decode()
            for picture in pictures
        },
        "sliced": facts.sliced,
        "tables": tables.all_tables(study, found, facts),
        "unchecked": unchecked(facts),
        "cells": len(found.results),
    }
    for name in ("tables.md", "tables.tex", "report.html"):
        with atomic_write(output / name) as partial:
            partial.write_text(render(name, **shown), encoding="utf-8")
    for line in words:
        print(line)
    print(f"report: {output / 'report.html'}", flush=True)


def render(name: str, **values: Any) -> str:
    """The text of the template NAME.j2 of this folder."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    escape = str.maketrans(_LATEX)
    templates.filters["latex"] = lambda text: text.translate(escape)
    return templates.get_template(f"{name}.j2").render(values)


def summary(facts: Findings) -> list[str]:
    """The verdicts in a few sentences, those with the fewest labels first."""
    words = []
    for amount in facts.labels:
        own = {key: c for (key, a), c in facts.comparisons.items() if a == amount}
        for text, sign in (("better", 1), ("worse", -1)):
            names: dict[str, list[str]] = {}
            for key, c in own.items():
                if c.shown() == sign:
                    names.setdefault(facts.against[key, amount], []).append(
                        f"{facts.label(key)} ({c.difference:+.3f}, corrected interval "
                        f"{c.low_holm:+.3f} to {c.high_holm:+.3f})"
                    )
            words += [
                f"With {amount} labels significantly {text} than {other}: {'; '.join(several)}."
                for other, several in names.items()
            ]
        words += [
            f"With {amount} labels {method} is not at its plateau: twice the steps change it by "
            f"{doubled.changes[0]:+.3f}."
            for (method, a), doubled in facts.plateau.items()
            if a == amount and doubled.moved
        ]
        words += [
            f"With {amount} labels {facts.label(key)} against "
            f"{DOUBLES[facts.against[key, amount]]}, scratch with twice the steps, in "
            f"{comparison.repetitions} repetitions: {comparison.verdict()}."
            for (key, a), comparison in facts.beyond.items()
            if a == amount
        ]
        pretrained = [c.shown() for key, c in own.items() if METHODS[key.method].task]
        if pretrained and max(pretrained) < 1:
            words.append(f"With {amount} labels no gain of any pretraining over scratch is shown.")
    if not facts.comparisons:
        words.append(
            "Nothing to compare yet: scratch or all other methods are missing, or there is only "
            "one repetition with one test subject."
        )
    return words


def unchecked(facts: Findings) -> list[str]:
    """The scratches not known to be at their plateau: a gain may be one over undertraining."""
    words = []
    for method in (SCRATCH, SCRATCH_2D):
        amounts = [
            amount
            for amount in facts.labels
            if (Key(method, "random"), amount) in facts.runs
            and (method, amount) not in facts.plateau
        ]
        if amounts:
            words.append(
                f"Whether {method} was trained to its plateau with {', '.join(amounts)} labels was "
                f"not checked here (--methods={method},{DOUBLES[method]} checks it)."
            )
    return words


def describe(plan: StudyData, found: Record, facts: Findings) -> list[tuple[str, str]]:
    """What was done in all runs of the study, as pairs of a name and a text."""
    study, dataset = plan.study, plan.dataset
    counts = {split: len(dataset.split(split)) for split in store.SPLITS}
    split = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    seen = ("the same data, " if not plan.elsewhere else f"{plan.corpus.name}, ") + (
        "all cases, validation and test too (transductive)"
        if plan.transductive
        else "training and unlabelled cases"
    )
    results = pd.DataFrame(found.results)
    spent = sum(results_table.numbers([*found.results, *found.pretraining], "seconds"))
    # scratch-long and the doubled ones have more.
    steps = pd.to_numeric(results["steps"]).groupby(results["labels"]).min()
    network = ", ".join(f"{key} {value}" for key, value in study.encoder.items())
    return [
        ("data", f"{dataset.name}: {split}; splits by {dataset.splits_by}"),
        ("tested on", f"the same {len(plan.labelled('test'))} test cases in every cell"),
        ("pretrained on", seen),
        ("cells", f"{len(results)} finished, repetitions of each: up to {facts.repetitions}"),
        ("network", network or "the preset's"),
        ("downstream steps", ", ".join(f"{steps[a]} with {a}" for a in facts.labels)),
        ("pretrained encoders", str(len(found.pretraining))),
        ("time", f"{spent / 3600:.2f} hours of all runs"),
        ("machine", "; ".join(sorted(results["machine"].unique()))),
        ("code", ", ".join(sorted(results["code"].unique()))),
        *(("note", note) for note in study.notes),
    ]


def cut_down(minutes: float, plan: StudyData, size: Size, full: Size) -> str:
    """The size of a study within a budget, in a sentence."""
    length = "each run at its full length."
    if plan.scale < 1:
        length = f"each run of {plan.scale:.1%} of the full study's steps, pretraining included."
    return (
        f"This is a study cut down to {minutes:g} minutes: {len(grid.cells(size))} of "
        f"{len(grid.cells(full))} cells ({', '.join(size.methods)}; labels "
        f"{', '.join(size.labels)}; {size.repetitions} repetitions), {length}"
    )


def as_typed(study: Study, arguments: Sequence[str]) -> str:
    """The command that continues the study, without the folders of this machine."""
    shown, before = [], ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if before in _FOLDERS:  # --data DIR
            shown.append("DIR")
        elif name in _FOLDERS and equals:
            shown.append(f"{name}=DIR")
        elif argument != "--report-only":
            shown.append(argument)
        before = argument
    return " ".join([f"python -m experiments.{study.name}", *shown])
