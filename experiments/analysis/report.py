"""What a study leaves for people: tables.md, tables.tex, figures/ and report.html."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis import figures, findings, page, results_table, tables
from experiments.analysis.results_table import Record
from experiments.engine import grid
from experiments.engine.grid import Size
from experiments.engine.study import Study
from experiments.engine.study_data import StudyData
from ssl3d.atomic import atomic_write
from ssl3d.data import store
from ssl3d.errors import UserError

_FOLDERS = ("--data", "--output", "--pretrain-data", "--source")


def write(plan: StudyData, found: Record, limits: Sequence[str], typed: str, output: Path) -> None:
    """Writes tables, figures and the page. Raises `UserError` if nothing has been run yet."""
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
            "Not run by the same version of the code as scratch, but by one that draws training "
            f"data differently: {names} (draws in results.csv)."
        )
    shown = tables.all_tables(study, found, facts)
    about = [("to go on", typed), *describe(plan, found, facts)]
    head = [f"# {study.title}", *notes, *page.summary(facts)]
    introduction = "\n\n".join(head) + "\n\n" + "\n".join(f"- {a}: {b}" for a, b in about)
    for name, text in (
        ("tables.md", tables.markdown(shown, introduction)),
        ("tables.tex", tables.latex(shown, notes)),
    ):
        with atomic_write(output / name) as partial:
            partial.write_text(text, encoding="utf-8")
    pictures = figures.write(output / "figures", study, facts)
    page.write(output / "report.html", study.title, about, notes, facts, shown, pictures, found)
    for line in page.summary(facts):
        print(line)
    print(f"report: {output / 'report.html'}", flush=True)


def describe(plan: StudyData, found: Record, facts: findings.Findings) -> list[tuple[str, str]]:
    """What was done, by this command and those before it, as pairs of a name and a text."""
    study, dataset = plan.study, plan.dataset
    counts = {split: len(dataset.split(split)) for split in store.SPLITS}
    split = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    tested = len(plan.labelled("test"))
    seen = ("the same data, " if not plan.elsewhere else f"{plan.corpus.name}, ") + (
        "all cases, validation and test too (transductive)"
        if plan.transductive
        else "training and unlabelled cases"
    )
    spent = sum(results_table.numbers([*found.results, *found.pretraining], "seconds"))
    # Others than scratch-long and those of twice the steps have the fewest.
    steps = {
        amount: min(int(row["steps"]) for row in found.results if row["labels"] == amount)
        for amount in facts.labels
    }
    network = ", ".join(f"{key} {value}" for key, value in study.encoder.items())
    codes = sorted({row["code"] for row in found.results})
    machines = sorted({row["machine"] for row in found.results})
    return [
        ("data", f"{dataset.name}: {split}; splits by {dataset.splits_by}"),
        ("tested on", f"the same {tested} test cases in every cell"),
        ("pretrained on", seen),
        ("cells", f"{len(found.results)} finished, repetitions of each: up to {facts.repetitions}"),
        ("network", network or "the preset's"),
        ("downstream steps", ", ".join(f"{n} with {amount}" for amount, n in steps.items())),
        ("pretrained encoders", str(len(found.pretraining))),
        ("time", f"{spent / 3600:.2f} hours of all runs"),
        ("machine", "; ".join(machines)),
        ("code", ", ".join(codes)),
        *(("note", note) for note in study.notes),
    ]


def cut_down(minutes: float, plan: StudyData, size: Size, full: Size) -> str:
    """How small a study in a budget is, in a sentence."""
    text = (
        f"This is a study cut down to {minutes:g} minutes: {len(grid.cells(size))} of "
        f"{len(grid.cells(full))} cells ({', '.join(size.methods)}; labels "
        f"{', '.join(size.labels)}; {size.repetitions} repetitions), "
    )
    if plan.scale < 1:
        text += f"each run of {plan.scale:.1%} of the full study's steps, pretraining included."
    else:
        text += "each run at its full length."
    return text


def as_typed(study: Study, arguments: Sequence[str]) -> str:
    """The command that goes on with it, without the folders of this machine."""
    shown, of = [], ""
    for argument in arguments:
        if argument == "--report-only":
            continue
        name, equals, _ = argument.partition("=")
        if of in _FOLDERS:  # --data DIR
            shown.append("DIR")
        elif name in _FOLDERS and equals:
            shown.append(f"{name}=DIR")
        else:
            shown.append(argument)
        of = argument
    return " ".join([f"python -m experiments.{study.name}", *shown])
