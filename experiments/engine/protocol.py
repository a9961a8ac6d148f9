"""What the commands of the studies share: options, data, the grid, the report.

    python -m experiments.hippocampus --data=DIR --output=DIR [--budget=20] [--part=1/4] [...]

Run again with the same output, it goes on; several at once share the work. The results are
results.csv, tables.md, tables.tex, figures/ and report.html in the output.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.analysis import report, results_table
from experiments.analysis.results_table import Record
from experiments.engine import budget, claims, grid, runs
from experiments.engine.budget import Size
from experiments.engine.grid import Cell, Job
from experiments.engine.study import METHODS, Study, check_methods, label_fraction
from experiments.engine.study_data import Plan, can_supervise, check_data, labelled_cases
from ssl3d import cli
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.training import cases as sources

MODES = ("finetune", "frozen")


def parser(study: Study) -> cli.Parser:
    """The options of a study's command."""
    about = f"{study.title}.\n\n{__doc__}"
    result = cli.Parser(prog=f"python -m experiments.{study.name}", description=about)
    add = result.add_argument
    about_data = "prepared downstream data"
    if study.preset.startswith("phantom"):
        about_data += " (default: drawn into OUTPUT/data)"
    elif study.derive:
        about_data = "prepared volumes, of which the downstream data are cut into OUTPUT/data"
    add("--data", type=Path, help=about_data)
    add("--output", type=Path, default=Path("runs") / study.name, help="default: %(default)s")
    add("--pretrain-data", type=Path, help="another prepared data set to pretrain on")
    add("--source", type=Path, help="files the data were prepared from, to score on their grid")
    names = ",".join(study.methods)
    add("--methods", type=_names, help=f"default: {names}; all: {','.join(METHODS)}")
    add("--fractions", type=_names, help=f"of labels, e.g. 5%%,32,all (default: {_join(study)})")
    add("--repetitions", type=_count, help=f"default: {study.repetitions}")
    add("--modes", type=_names, help=f"of {','.join(MODES)} (default: {','.join(study.modes)})")
    add("--budget", type=_minutes, help="minutes, of each part: cut down to what fits")
    add("--part", type=_part, default=(1, 1), metavar="i/n", help="one share of n of the cells")
    add(
        "--transductive",
        action="store_true",
        help="pretrain on the images of validation and test cases too (without their labels)",
    )
    add("--report-only", action="store_true", help="only write the report of what is there")
    return result


def main(study: Study, arguments: Sequence[str]) -> int:
    """Runs the study's command; the exit status. Raises `UserError` and `RunError`."""
    started = time.monotonic()
    options = parser(study).parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        return carry_out(study, options, report.as_typed(study, arguments), started)
    except runs.Stopped:  # while a budget was measured
        return _stopped()
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or options.output
        raise UserError(f"{where}: {error.strerror or error}; mend that and run again") from None


def carry_out(study: Study, options: argparse.Namespace, typed: str, started: float) -> int:
    """Runs what is missing and writes the report. Raises `UserError`, `RunError` and OSError."""
    output = options.output.resolve()
    plan = make_plan(study, options, output)
    size, limits, may_start = choose_size(plan, options), [], lambda job: True
    minutes, before = options.budget, budget.stored(output)
    if options.report_only and before:
        minutes, size = before
    if minutes:
        full, deadline = size, started + 60 * minutes
        plan, size, document = budget.plan_for(
            plan, full, minutes, deadline, output, options.part[1]
        )
        may_start = budget.clock(document, deadline)
        limits = [report.cut_down(minutes, plan, size, full)]
    elif before:
        raise UserError(
            f"{output} holds a study that was cut down to a budget; give the same --budget to go "
            "on with it, or another --output"
        )
    cells = grid.cells(*size)
    jobs = grid.jobs(plan, cells)
    stopped, failed = False, []
    if not options.report_only:
        own = set(grid.share(cells, options.part))
        mine = [job for cell, job in zip(cells, jobs, strict=True) if cell in own]
        stopped, failed = run_missing(plan, mine, may_start, output)
    everything = results_table.read(output)
    found = results_table.restrict(everything, current(plan, everything))
    left = len({job.row["cell"] for job in jobs} - found.known())
    if left:
        limits.append(f"Not complete: {left} of {len(jobs)} cells are missing.")
    if found.results or not (stopped or failed):
        report.write(plan, found, limits, typed, output)
    if options.report_only:
        results_table.update(output)  # by cells whose process was killed before it did
    if stopped:
        return _stopped()
    runs.failures(failed)
    return 0


def run_missing(
    plan: Plan, jobs: Sequence[Job], may_start: Callable[[Job], bool], output: Path
) -> tuple[bool, list[str]]:
    """Runs the cells that are not there, and brings the tables of results up to date.

    Returns:
      Whether a signal ended it, and what failed.
    """
    known = results_table.read(output).known()
    missing = [job for job in jobs if job.row["cell"] not in known]
    print(f"{len(jobs)} cells, {len(jobs) - len(missing)} of them there already", flush=True)
    columns = [list(column) for column in plan.study.columns]
    try:
        failed = runs.work(output, missing, columns, plan.source, may_start, _say)
    except runs.Stopped:
        return True, []
    finally:
        results_table.update(output)
        _keep_out_of_repositories(output)
    return False, failed


def _stopped() -> int:
    print("stopped; run the same command again to go on", flush=True)
    return 1


def _say(text: str) -> None:
    print(text, flush=True)


def make_plan(study: Study, options: argparse.Namespace, output: Path) -> Plan:
    """The data of a study. Raises `UserError` where they are missing or do not fit."""
    if options.source and study.downstream == "classify":
        raise UserError(f"--source: scores label maps, and {study.name} has grades; leave it out")
    if options.source and not options.source.is_dir():
        raise UserError(f"--source={options.source}: no such folder")
    # Opening may draw or cut them, so what is wrong with the options is said before.
    dataset = open_dataset(study, options.data, output)
    corpus = store.read(options.pretrain_data) if options.pretrain_data else dataset
    source = str(options.source.resolve()) if options.source else ""
    return Plan(study, dataset, corpus, options.transductive, source=source)


def open_dataset(study: Study, path: Path | None, output: Path) -> store.Dataset:
    """The downstream data. A phantom is drawn on first use, and slices are cut."""
    if study.preset.startswith("phantom"):
        folder = path or output / "data"
        settings = dict(study.data) | {"data.path": str(folder)}
        file = f"{study.downstream}{study.rank}d"
        config = grid.load_config(file, study.preset, settings)
        return _made_once(output, folder, lambda: sources.open_dataset(config))
    if path is None:
        raise UserError("--data: give the folder that python -m ssl3d.prepare has written")
    dataset = store.read(path)
    if study.derive:
        derive, folder = study.derive, output / "data"
        return _made_once(output, folder, lambda: derive(dataset, folder))
    if dataset.rank != study.rank:
        raise UserError(
            f"{path}: holds {dataset.rank}D images, {study.name} is a study of {study.rank}D ones"
        )
    return dataset


def _made_once(
    output: Path, folder: Path, make_or_open: Callable[[], store.Dataset]
) -> store.Dataset:
    """A data set that the study makes itself, by one process alone."""
    if (folder / store.MANIFEST).exists():
        return make_or_open()
    if folder.parent == output:
        folder.mkdir(exist_ok=True)
        _keep_out_of_repositories(output)
    while (claim := claims.take(output / "drawing")) is None:
        time.sleep(runs.LOOK)
    with claims.kept_alive(claim, lambda: None):
        return make_or_open()


def choose_size(plan: Plan, options: argparse.Namespace) -> Size:
    """The grid that was asked for, or what the data allow of the study's own.

    Raises:
      UserError: something that there is not, or that the data do not allow.
    """
    study = plan.study
    methods = options.methods or tuple(
        name for name in study.methods if name != "supervised" or can_supervise(plan)
    )
    check_methods(methods, study.rank)
    check_data(plan, methods)
    modes = options.modes or study.modes
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"--modes: no mode {mode!r}; choose of {', '.join(MODES)}")
    subjects = len({case.subject for case in labelled_cases(plan, "train")})
    if not subjects:
        raise UserError(f"{plan.dataset.path}: no labelled training cases; prepare with labels")
    if options.fractions:
        given = ("all" if text == "100%" else text for text in options.fractions)
        labels = tuple(sorted(given, key=lambda amount: label_fraction(amount, subjects)))
    else:
        labels = tuple(x for x in study.labels if not x.isdigit() or int(x) < subjects)
    repetitions = options.repetitions or study.repetitions
    return Size(methods, labels, repetitions, modes, study.first_repetition)


def current(plan: Plan, everything: Record) -> set[str]:
    """Names of the finished cells that were run with the settings as they are now."""
    rows = everything.results
    cells = [
        Cell(row["method"], row["mode"], row["labels"], int(row["repetition"])) for row in rows
    ]
    known = [cell for cell in dict.fromkeys(cells) if _is_possible(plan, cell)]
    return {job.row["cell"] for job in grid.jobs(plan, known)}


def _is_possible(plan: Plan, cell: Cell) -> bool:
    """Whether the data still allow a cell, which may have been run on others."""
    subjects = len({case.subject for case in labelled_cases(plan, "train")})
    try:
        check_methods((cell.method,), plan.study.rank)
        check_data(plan, (cell.method,))
        label_fraction(cell.labels, subjects)
    except UserError:
        return False
    return True


def _keep_out_of_repositories(output: Path) -> None:
    """The results may lie in a repository, as docs/results/ does; checkpoints should not."""
    for name in (grid.CELLS, grid.PRETRAINING, "data", "plan", "drawing", budget.PROBE):
        folder = output / name
        if folder.is_dir() and not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n")


def _join(study: Study) -> str:
    return ",".join(study.labels).replace("%", "%%")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError("names with commas between them are needed")
    return names


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return minutes


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, e.g. 2/4")
    return int(match[1]), int(match[2])
