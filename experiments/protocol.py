"""A study as a command: runs the missing cells of its grid, and writes the report.

    python -m experiments.hippocampus --data=DIR --output=DIR [--budget=20] [...]

Run the command again to continue; with --scheduler=ADDRESS it runs on a Dask cluster. The results
are results.csv, tables.md, tables.tex, figures/ and report.html in the output.
"""

import argparse
import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ssl3d import cli, cluster, processes
from ssl3d.configs import datasets
from ssl3d.data import store
from ssl3d.errors import RunError, UserError
from ssl3d.experiments.analysis import report, results_table
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.analysis.templates import sentences
from ssl3d.experiments.engine import budget, grid, runs
from ssl3d.experiments.engine.grid import Cell, Size
from ssl3d.experiments.engine.study import METHODS, Study, StudyData, check, label_fraction
from ssl3d.training import cases as sources

MODES = ("finetune", "frozen")
# Folders of an output without results: a repository may hold the others, as results/ does.
_TEMPORARY = (grid.CELLS, grid.PRETRAINING, "data", budget.PROBE)


def parser(study: Study) -> cli.Parser:
    """The options of a study's command."""
    about = f"{study.title}.\n\n{__doc__}"
    result = cli.Parser(prog=f"python -m ssl3d.study {study.name}", description=about)
    add = result.add_argument
    add("--data", type=cli.path, help="prepared data; of a phantom: default OUTPUT/data")
    add(
        "--output",
        type=cli.path,
        default=Path("runs") / study.name,
        help="folder of the study (default: %(default)s)",
    )
    add("--pretrain-data", type=cli.path, help="another prepared data set to pretrain on")
    add("--source", type=cli.path, help="source files of the data, to score on their voxel grids")
    amounts = "amounts of labelled training subjects to compare, e.g. 5%%,32,all"
    names, labels = ",".join(study.methods), ",".join(study.labels).replace("%", "%%")
    add(
        "--methods",
        type=_names,
        help=f"methods to compare, of {','.join(METHODS)} (default: {names})",
    )
    add("--fractions", type=_names, help=f"{amounts} (default: {labels})")
    add(
        "--repetitions",
        type=int,
        default=study.repetitions,
        help="repetitions of every cell, each with other labels and weights (default: %(default)s)",
    )
    modes = f"what becomes of the pretrained encoders: {','.join(MODES)}, or one of the two "
    modes += f"(default: {','.join(study.modes)})"
    add("--modes", type=_names, default=study.modes, help=modes)
    add("--budget", type=float, help="minutes to which the study is cut down")
    add(
        "--workers",
        type=int,
        help="number of runs at a time (default: one, or one per accelerator)",
    )
    add(
        "--scheduler", default="", metavar="ADDRESS", help="run on the Dask cluster at this address"
    )
    about_all = "pretrain on the images of validation and test cases too (without their labels)"
    add("--transductive", action="store_true", help=about_all)
    add("--report-only", action="store_true", help="only write the report of the stored results")
    return result


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def command(study: Study) -> NoReturn:
    """Runs the study with the options of the command line, and exits."""
    cli.run(lambda arguments: main(study, arguments))


def main(study: Study, arguments: Sequence[str]) -> int:
    """Runs the study's command; the exit status. Raises `UserError` and `RunError`."""
    started = time.time()
    options = parser(study).parse_args(arguments)
    if options.repetitions < 1:
        raise UserError("--repetitions: give a whole number from 1")
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise UserError("--budget: give a number of minutes")
    if options.workers is not None and (options.workers < 1 or options.scheduler):
        raise UserError("--workers: give a whole number from 1, and no --scheduler")
    try:
        with cli.disk_errors(options.output):
            options.output.mkdir(parents=True, exist_ok=True)
            alone = processes.claimed(options.output / grid.CELLS, "--output", "runs this study")
            with contextlib.nullcontext() if options.report_only else alone:
                carry_out(study, options, report.as_typed(study, arguments), started)
    except processes.Stopped:
        print("stopped; run the same command again to continue", flush=True)
        return 1
    return 0


def carry_out(study: Study, options: argparse.Namespace, typed: str, started: float) -> None:
    """Runs the missing cells and writes the report, of a stopped or failed study too."""
    output = options.output.resolve()
    data = open_data(study, options, output)
    size, limits, chosen, ending = choose_size(data, options), [], None, None
    minutes, before = options.budget, budget.read(output)
    connect = functools.partial(cluster.connect, options.scheduler, options.workers)
    if options.report_only and before:
        minutes, size = before.budget_minutes, before.full
    deadline = started + 60 * (minutes or math.inf)
    if minutes:
        full = size
        data, chosen = budget.agree(data, full, minutes, deadline, output, connect)
        size = chosen.size
        counts = len(grid.cells(size)), len(grid.cells(full))
        limits = sentences("cut_down", minutes, data.scale, size, *counts)
    elif before:
        remedy = "give the same --budget to continue it, or another --output"
        raise UserError(f"{output} holds a study that was reduced to a budget; {remedy}")
    jobs = grid.jobs(data, grid.cells(size))
    if not options.report_only:
        known = results_table.read(output).known()
        missing = [job for job in jobs if job.row["cell"] not in known]
        print(f"{len(jobs)} cells, {len(jobs) - len(missing)} finished already", flush=True)
        try:
            latest = chosen.latest_start if chosen else lambda job, deadline: deadline
            runs.work(output, missing, connect, lambda job: latest(job, deadline))
        except (processes.Stopped, RunError) as error:
            ending = error
        finally:
            _keep_out_of_repositories(output)
            results_table.update(output)
    everything = results_table.read(output)
    found = results_table.restrict(everything, current(data, everything))
    left = len({job.row["cell"] for job in jobs} - found.known())
    if left:
        limits.append(f"Not complete: {left} of {len(jobs)} cells are missing.")
    if len(found.results) or not ending:
        report.write(data, found, limits, typed, output)
    if options.report_only:
        results_table.update(output)  # by cells of a process that was killed before it did
    if ending:
        raise ending


def _keep_out_of_repositories(output: Path) -> None:
    for folder in filter(Path.is_dir, (output / name for name in _TEMPORARY)):
        (folder / ".gitignore").write_text("*\n")


def open_data(study: Study, options: argparse.Namespace, output: Path) -> StudyData:
    """The data of a study. Raises `UserError` where they are missing or do not fit."""
    if (source := options.source) and study.downstream == "classify":
        raise UserError(f"--source: scores label maps, and {study.name} has grades; leave it out")
    if source and not source.is_dir():
        raise UserError(f"--source={source}: no such folder")
    # Last, as it may generate or cut them.
    dataset = open_dataset(study, options.data, output)
    corpus = store.read(options.pretrain_data) if options.pretrain_data else dataset
    source = str(source.resolve()) if source else ""
    return StudyData(study, dataset, corpus, options.transductive, source=source)


def open_dataset(study: Study, path: Path | None, output: Path) -> store.Dataset:
    """The downstream data. On first use a phantom is generated, and slices are cut."""
    if study.preset.startswith("phantom"):
        folder = path or output / "data"
        settings = {**study.data, "data.path": str(folder)}
        config = grid.load_config(f"{study.downstream}{study.rank}d", study.preset, settings)
        return _made_once(output, folder, lambda: sources.open_dataset(config))
    if path is None:
        raise UserError("--data: give the folder that python -m ssl3d.prepare has written")
    dataset, derive, folder = store.read(path), study.derive, output / "data"
    if derive:
        return _made_once(output, folder, lambda: derive(dataset, folder))
    if dataset.rank != study.rank:
        raise UserError(
            f"{path}: holds {dataset.rank}D images, {study.name} is a study of {study.rank}D ones"
        )
    if study.classes and dataset.classes[1:] != study.classes:
        raise UserError(
            f"{path}: its classes are {', '.join(dataset.classes[1:]) or 'none'}, and {study.name} "
            f"is a study of {', '.join(study.classes)}; prepare and give "
            f"{datasets.PRESETS[study.preset].about}"
        )
    return dataset


def _made_once(output: Path, folder: Path, make: Callable[[], store.Dataset]) -> store.Dataset:
    if folder.parent == output:
        folder.mkdir(exist_ok=True)
        _keep_out_of_repositories(output)
    return make()


def choose_size(data: StudyData, options: argparse.Namespace) -> Size:
    """The requested grid; by default the study's own, as far as the data allow it."""
    study, subjects = data.study, data.subjects
    methods = options.methods or tuple(
        name for name in study.methods if name != "supervised" or data.can_supervise
    )
    check(data, methods)
    for mode in options.modes:
        if mode not in MODES:
            raise UserError(f"--modes: no mode {mode!r}; choose of {', '.join(MODES)}")
    if not subjects:
        raise UserError(f"{data.dataset.path}: no labelled training cases; prepare with labels")
    labels = tuple(x for x in study.labels if not x.isdigit() or int(x) < subjects)
    if options.fractions:
        given = ["all" if text == "100%" else text for text in options.fractions]
        labels = tuple(sorted(given, key=lambda amount: label_fraction(amount, subjects)))
    return Size(methods, labels, options.repetitions, options.modes, study.first_repetition)


def current(data: StudyData, everything: Record) -> set[str]:
    """Names of the stored cells that were run with the present settings."""
    table = everything.results.astype({"repetition": int})
    cells = table[[*Cell._fields]].drop_duplicates().itertuples(index=False)
    allowed = []
    for cell in map(Cell._make, cells):
        with contextlib.suppress(UserError):  # of a cell of other data
            check(data, [cell.method], [cell.labels])
            allowed.append(cell)
    return {job.row["cell"] for job in grid.jobs(data, allowed)}
