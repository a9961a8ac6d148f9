"""The protocol of a study: its data, the missing cells of its grid, its tables and report."""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ssl3d import cluster, processes
from ssl3d.configs import datasets
from ssl3d.data import store
from ssl3d.errors import RunError, UserError
from ssl3d.experiments.analysis import report, results_table
from ssl3d.experiments.analysis.results_table import Record
from ssl3d.experiments.engine import estimate, grid, runs, splits
from ssl3d.experiments.engine.grid import Cell, Size
from ssl3d.experiments.engine.study import (
    METHODS,
    MODES,
    Settings,
    Study,
    StudyData,
    check,
    label_fraction,
    with_settings,
)
from ssl3d.training import cases as sources

# Seconds between two updates of the tables while cells are run.
AT_MOST_EVERY = 10.0
# Folders of an output without results: a repository may hold the others, as results/ does.
_TEMPORARY = (grid.CELLS, grid.PRETRAINING, "data", "splits", estimate.PROBE)


# (folder, how to make them) -> data that a study makes on first use.
Made = Callable[[Path, Callable[[], store.Dataset]], store.Dataset]


def print_plan(base: Study, options: argparse.Namespace) -> None:
    """Prints what the study takes on the GPUs of `--estimate`, by plan and without data."""
    gpus = estimate.gpus(options.estimate)
    data = estimate.without_data(with_settings(base, options.set), options.splits)
    size = choose_size(data, options)
    check_settings(base, options, data, size)
    jobs = grid.jobs(data, grid.cells(size))
    costs = estimate.planned(options.estimate, jobs)
    print(estimate.table(jobs, costs, gpus))


def carry_out(base: Study, options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Runs the missing cells and writes the report, as the only command to run in the output.

    The study is `base` with the settings of `--set`.
    """
    alone = processes.claimed(options.output / grid.CELLS, "--output", "runs this study")
    with contextlib.nullcontext() if options.report_only else alone:
        _carry_out(base, options, report.as_typed(base, arguments))


def _carry_out(base: Study, options: argparse.Namespace, typed: str) -> None:
    """Writes the report of a stopped or failed study too."""
    output = options.output.resolve()
    data, ending = open_data(with_settings(base, options.set), options, output), None
    connect = functools.partial(cluster.connect, options.scheduler, options.workers)
    size = choose_size(data, options)
    check_settings(base, options, data, size)
    jobs = grid.jobs(data, grid.cells(size))
    known = results_table.read(output).known()
    missing = [job for job in jobs if job.row["cell"] not in known]
    if options.estimate is not None:
        print_estimate(output, missing, connect)
        return
    if not options.report_only:
        grid.keep_keys(output, jobs)
        print(f"{len(jobs)} cells, {len(jobs) - len(missing)} finished already", flush=True)
        try:
            runs.work(output, missing, connect, _Keeping(output))
        except (processes.Stopped, RunError) as error:
            ending = error
        finally:
            _update(output)
    everything = results_table.read(output)
    found = results_table.restrict(everything, current(data, everything, size))
    planned = jobs + grid.jobs(data, begun(found, size))
    names = {job.row["cell"] for job in planned}
    if len(found.results) or not ending:
        report.write(data, found, (len(names - found.known()), len(names)), typed, output)
    if options.report_only:
        results_table.update(output)  # by cells of a process that was killed before it did
    if ending:
        raise ending


def print_estimate(output: Path, missing: Sequence[grid.Job], connect: runs.Connect) -> None:
    """Prints what the missing cells take, by a few steps of each kind of run."""
    if not missing:
        print("nothing is missing")
        return
    missing = [
        dataclasses.replace(job, needs=None)
        if job.needs and (output / job.needs.name / runs.RESULT).exists()
        else job
        for job in missing
    ]
    with connect() as client:
        try:
            again, workers = lambda: contextlib.nullcontext(client), len(client.nthreads())
            costs = estimate.here(output, missing, again, workers)
        finally:
            _keep_out_of_repositories(output)
        print(estimate.table(missing, costs, workers))


class _Keeping:
    """Called after each run: keeps the finished cells in the tables, so that none is lost.

    Not at once after the last time: merging takes longer than the shortest cells.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._last = output, time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last >= AT_MOST_EVERY:
            _update(self._output)
            self._last = time.monotonic()


def _update(output: Path) -> None:
    _keep_out_of_repositories(output)
    results_table.update(output)


def _keep_out_of_repositories(output: Path) -> None:
    for folder in filter(Path.is_dir, (output / name for name in _TEMPORARY)):
        (folder / ".gitignore").write_text("*\n")


def open_data(study: Study, options: argparse.Namespace, output: Path) -> StudyData:
    """The data of a study. Raises `UserError` where they are missing or do not fit."""
    if (source := options.source) and study.downstream == "classify":
        raise UserError(f"--source: scores label maps, and {study.name} has grades; leave it out")
    if source and not source.is_dir():
        raise UserError(f"--source={source}: no such folder")

    def made(folder: Path, make: Callable[[], store.Dataset]) -> store.Dataset:
        """Data that the study makes on first use, in a folder of its own."""
        if options.report_only and not (folder / store.MANIFEST).exists():
            reason = "no data here, and a report alone makes none"
            raise UserError(f"{folder}: {reason}; run the command without --report-only")
        if folder not in (options.data, options.pretrain_data):  # which may be mistyped
            folder.mkdir(parents=True, exist_ok=True)
        _keep_out_of_repositories(output)
        return make()

    # Last, as it may generate or cut them.
    dataset = open_dataset(study, options.data, output, made)
    corpus = open_corpus(study, options.pretrain_data, made) or dataset
    source = str(source.resolve()) if source else ""
    dealt = tuple(
        made(folder, functools.partial(splits.deal, dataset, number, folder))
        for number in range(1, options.splits + 1 if options.splits > 1 else 1)
        for folder in [output / "splits" / str(number)]
    )
    keys = grid.read_keys(output)
    data = StudyData(study, dataset, corpus, options.transductive, source, dealt, keys)
    encoders, number = options.encoders, options.splits
    if data.elsewhere and number > 1 and encoders % number and number % encoders:
        raise UserError(
            f"--encoders={encoders} --splits={number}: all splits share these encoders: one number "
            f"must be a multiple of the other; give --encoders={number}"
        )
    return data


def open_corpus(study: Study, path: Path | None, made: Made) -> store.Dataset | None:
    """The separate data to pretrain on, if any; a phantom is generated on first use."""
    if path and not (study.corpus and not (path / store.MANIFEST).exists()):
        found = store.read(path)
        if not study.corpus or "phantom" not in found.extra:
            return found
    if not study.corpus:
        return None
    folder = path or Path("data") / f"{study.preset}_corpus"
    return _phantom(study, study.corpus, folder, made)


def open_dataset(study: Study, path: Path | None, output: Path, made: Made) -> store.Dataset:
    """The downstream data. On first use a phantom is generated, and slices are cut."""
    folder, derive = output / "data", study.derive
    if study.preset.startswith("phantom"):
        return _phantom(study, {}, path or folder, made)
    if path is None:
        raise UserError("--data: give the folder that python -m ssl3d.prepare has written")
    dataset = store.read(path)
    if derive:
        return made(folder, lambda: derive(dataset, folder))
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


def _phantom(study: Study, own: Settings, folder: Path, made: Made) -> store.Dataset:
    settings = {**study.data, **own, "data.path": str(folder)}
    config = grid.load_config(f"{study.downstream}{study.rank}d", study.preset, settings)
    return made(folder, lambda: sources.open_dataset(config))


def choose_size(data: StudyData, options: argparse.Namespace) -> Size:
    """The requested grid; by default the study's own, as far as the data allow it."""
    study, subjects = data.study, data.subjects
    methods = options.methods or tuple(
        name for name in study.methods if name != "supervised" or data.can_supervise
    )
    for split in range(1, options.splits + 1) if data.dealt else (0,):
        check(data.of(split), methods)
    for mode in options.modes:
        if mode not in MODES:
            raise UserError(f"--modes: no mode {mode!r}; choose of {', '.join(MODES)}")
    if not subjects:
        raise UserError(f"{data.dataset.path}: no labelled training cases; prepare with labels")
    labels = tuple(x for x in study.labels if not x.isdigit() or int(x) < subjects)
    if options.fractions:
        given = ["all" if text == "100%" else text for text in options.fractions]
        labels = tuple(sorted(given, key=lambda amount: label_fraction(amount, subjects)))
    return Size(
        *(methods, labels, options.repetitions, options.modes, study.first_repetition),
        *(options.encoders, options.splits, tuple(study.arms) or ("",)),
    )


def begun(found: Record, size: Size) -> list[Cell]:
    """The cells of `size`'s repetitions of what was begun beyond it, e.g. of further methods.

    They are in the report, and there is no verdict before they are finished.
    """
    rows = found.results.reindex(columns=[*Cell._fields], fill_value="")
    places = {tuple(row) for row in rows[["method", "mode", "labels", "arm"]].to_numpy()}
    methods, modes, labels = (tuple(rows[name].unique()) for name in ("method", "mode", "labels"))
    wide = size._replace(methods=methods, modes=modes, labels=labels)
    asked = set(grid.cells(size))
    return [
        cell
        for cell in grid.cells(wide)
        if (cell.method, cell.mode, cell.labels, cell.arm) in places and cell not in asked
    ]


def check_settings(base: Study, options: argparse.Namespace, data: StudyData, size: Size) -> None:
    """Raises `UserError` for a setting of `--set` that changes no run of the study `base`."""
    cells = grid.cells(size._replace(repetitions=1))
    jobs = grid.jobs(data, cells)
    for text in options.set:
        others = [one for one in options.set if one != text]
        study = with_settings(base, others)
        if study == data.study or text.startswith("corpus."):  # as it is; the corpus itself
            continue
        if grid.jobs(dataclasses.replace(data, study=study), cells) == jobs:
            raise UserError(
                f"--set={text}: changes no run, as the study sets this itself, or has no run of "
                "such a method or amount of labels; leave it out"
            )


def current(data: StudyData, everything: Record, size: Size) -> set[str]:
    """Names of the stored cells that were run with the present settings.

    Of other encoders or splits than `size` deals to their repetitions there are none among them:
    a repetition would count twice.
    """
    table = everything.results.reindex(columns=[*Cell._fields], fill_value="")
    # Tables of before had neither encoders nor splits.
    numbers = ["repetition", "encoder", "split"]
    table[numbers] = table[numbers].replace("", "0").astype(int)
    allowed = []
    table = table[table["method"].isin(METHODS)]
    for cell in map(Cell._make, table.drop_duplicates().itertuples(index=False)):
        encoder, split = grid.dealt(size, cell.repetition)
        dealt = encoder if METHODS[cell.method].task else 0, split
        if (cell.encoder, cell.split) != dealt or cell.arm not in size.arms:
            continue
        with contextlib.suppress(UserError):  # of a cell of other data
            check(data.of(cell.split), [cell.method], [cell.labels])
            allowed.append(cell)
    return {job.row["cell"] for job in grid.jobs(data, allowed)}
