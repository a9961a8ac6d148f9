"""A whole collection: all cases in parallel, resumed where it stopped, each whole or not at all."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl3d.atomic import atomic_write, leftovers
from ssl3d.data import geometry, readers, store
from ssl3d.data.geometry import Grid
from ssl3d.data.layouts.listing import Problem, SourceCase
from ssl3d.data.preparation.case import Job, check_label_values, prepare_case
from ssl3d.data.readers import checks
from ssl3d.errors import UserError

# One line per finished case while a run is under way; gone when the manifest is there.
PROGRESS = "progress.jsonl"


def in_parallel(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int, title: str
) -> Iterator[tuple[int, Any]]:
    """Calls `function(*call)` for each call; yields (index, result or UserError) as they finish.

    Raises:
      UserError: a worker process died (most often: out of memory).
      OSError: the disk is full, or may not be written to.
    """
    bar = tqdm(total=len(calls), desc=title, unit="case", disable=None)
    with bar:
        if workers == 1:
            for index, call in enumerate(calls):
                yield index, _attempt(function, call)
                bar.update()
            return
        # Spawned, not forked: the parent has threads (the progress bar's, a test runner's).
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            min(workers, max(1, len(calls))), mp_context=context, initializer=_start_worker
        ) as pool:
            futures = {
                pool.submit(_attempt, function, call): index for index, call in enumerate(calls)
            }
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield futures[future], future.result()
                    bar.update()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, most likely for want of memory; run again "
                    "with fewer --workers (finished cases are kept)"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """An interrupt is the parent's to handle; a worker whose parent was killed goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _attempt(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    """The result or the case's own error; a full disk (OSError) is no case's and ends the run."""
    try:
        return function(*call)
    except UserError as error:
        return error
    except MemoryError:
        return UserError("not enough memory; run again with fewer --workers")


@dataclasses.dataclass(frozen=True)
class Outline:
    """What is known of a case before it is prepared.

    Attributes:
      grid: of the source, in canonical orientation.
      target: of the prepared image, where nothing is cropped away.
      channels: of the source.
      voxels: label value -> voxels in the source; None without a label.
    """

    grid: Grid
    target: Grid
    channels: int
    voxels: dict[int, int] | None

    @property
    def bytes(self) -> int:
        """Of the prepared case: float16 per channel, and the label."""
        label = 0 if self.voxels is None else 1
        return int(np.prod(self.target.shape)) * (2 * self.channels + label)


def outline(case: SourceCase, job: Job, count_labels: bool) -> Outline:
    """Reads the headers of a case and, to count its classes, its label. Raises `UserError`."""
    store.check_id(case.id)
    headers = [readers.read_header(paths, job.recipe.rank) for paths in case.images]
    grid = geometry.canonical_grid(headers[0].grid)
    target = geometry.target_grid(grid, job.recipe.spacing, job.recipe.size)
    channels = sum(header.channels for header in headers)
    voxels = None
    if case.label:
        voxels = label_values(case.label, job.recipe.rank) if count_labels else {}
        check_label_values(case.label, voxels, job.values)
    return Outline(grid, target, channels, voxels)


def label_values(path: Path, rank: int) -> dict[int, int]:
    """The values of a label file and how many voxels have each. Raises `UserError`."""
    counts = np.zeros(checks.LARGEST_LABEL + 1, np.int64)
    for plane in readers.read_label(path, rank).array:
        found = np.bincount(plane.ravel())
        counts[: len(found)] += found
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def check_disk(output: Path, needed: int) -> None:
    """Raises `UserError` when the disk of `output` cannot take `needed` bytes.

    Arrays that an earlier run left in `output` are already paid for.
    """
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    # Not what a kill left of an array, under a hidden name: that one is written again.
    needed -= sum(path.stat().st_size for path in output.glob("*/[!.]*.npy"))
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{output}: the prepared data need up to {gigabytes(needed)}, the disk has "
            f"{gigabytes(free)} free; make room or choose another --output"
        )


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def settings_of(job: Job) -> dict[str, Any]:
    """What the prepared arrays depend on besides the files; splits are not part of it."""
    recipe = dataclasses.asdict(job.recipe)
    del recipe["fractions"]
    return json.loads(
        json.dumps(
            {
                "recipe": recipe,
                "modalities": job.modalities,
                "values": sorted(job.values.items()),
            }
        )
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a run: the prepared cases, and why others are missing."""

    cases: tuple[store.Case, ...]
    problems: tuple[Problem, ...]
    reused: int


def prepare_all(cases: Sequence[SourceCase], job: Job, workers: int) -> Result:
    """Prepares the cases that are not there yet.

    Every finished case is noted in `PROGRESS` (by this process alone), so that an interrupted
    run goes on with the rest. Cases of a finished data set are kept where their files still
    have the same checksums.

    Raises:
      UserError: the output folder holds something else, or data prepared with other settings.
    """
    known = _known_cases(job)
    kept = _kept_cases([case for case in cases if case.id in known], known, job, workers)
    missing = [case for case in cases if case.id not in kept]
    job.output.mkdir(parents=True, exist_ok=True)
    progress = job.output / PROGRESS
    _write_progress(progress, job, [entry for _, entry in sorted(kept.items())])
    if any(case.id in known for case in missing):
        # Arrays that the manifest describes are about to change.
        (job.output / store.MANIFEST).unlink(missing_ok=True)
    results = {name: entry.case for name, entry in kept.items()}
    problems: dict[str, Problem] = {}
    with progress.open("a") as file:
        calls = [(case, job) for case in missing]
        for index, prepared in in_parallel(prepare_case, calls, workers, "preparing"):
            case = missing[index]
            if isinstance(prepared, UserError):
                problems[case.id] = Problem(case.id, str(prepared))
                continue
            results[case.id] = prepared
            file.write(_progress_line(_Known(prepared, _stamps(case))))
            file.flush()
    return Result(
        cases=tuple(results[name] for name in sorted(results)),
        problems=tuple(problems[case.id] for case in missing if case.id in problems),
        reused=len(kept),
    )


def finish(dataset: store.Dataset) -> None:
    """Writes the manifest, then removes what is not part of it and the notes of the run."""
    store.write_manifest(dataset)
    ids = {case.id for case in dataset.cases}
    labelled = {case.id for case in dataset.cases if case.labelled}
    for folder, wanted in (("images", ids), ("labels", labelled)):
        for path in (dataset.path / folder).glob("*"):
            if path.name.removesuffix(".npy") not in wanted:
                path.unlink()
    for name in (store.MANIFEST, PROGRESS):
        for path in leftovers(dataset.path / name):
            path.unlink()
    (dataset.path / PROGRESS).unlink(missing_ok=True)


def duplicates(cases: Sequence[store.Case]) -> list[tuple[store.Case, store.Case]]:
    """Pairs of cases that hold the same image, voxel by voxel: (the first of its kind, another)."""
    first: dict[str, store.Case] = {}
    pairs = []
    for case in sorted(cases, key=lambda case: case.id):
        other = first.setdefault(case.extra["content"], case)
        if other is not case:
            pairs.append((other, case))
    return pairs


@dataclasses.dataclass(frozen=True)
class _Known:
    """A case prepared earlier; `stamps` are None where only checksums can tell if it is valid."""

    case: store.Case
    stamps: list[list[int]] | None


def _kept_cases(
    cases: Sequence[SourceCase], known: dict[str, _Known], job: Job, workers: int
) -> dict[str, _Known]:
    """The known cases whose arrays are there and whose source files have not changed."""
    kept = {}
    calls = [(case, job, known[case.id]) for case in cases]
    if not calls:
        return kept
    for index, valid in in_parallel(_still_valid, calls, workers, "checking"):
        case = cases[index]
        if valid is True:
            entry = dataclasses.replace(known[case.id].case, subject=case.subject, grade=case.grade)
            kept[case.id] = _Known(entry, _stamps(case))
    return kept


def _still_valid(case: SourceCase, job: Job, known: _Known) -> bool:
    """Whether a prepared case is what would be prepared now. Raises `UserError` where not."""
    if known.case.labelled != (case.label is not None):
        return False
    folder = store.Dataset(job.output, "", job.recipe.rank, job.modalities, (), "", ())
    store.load_image(folder, known.case)
    if known.case.labelled:
        store.load_label(folder, known.case)
    if known.stamps == _stamps(case):
        return True
    return readers.checksum(case.files) == known.case.extra["checksum"]


def _stamps(case: SourceCase) -> list[list[int]]:
    """Size and time of change of the case's files."""
    return [[path.stat().st_size, path.stat().st_mtime_ns] for path in case.files]


def _known_cases(job: Job) -> dict[str, _Known]:
    """Cases of an earlier run into the same folder, finished or interrupted."""
    progress, manifest = job.output / PROGRESS, job.output / store.MANIFEST
    known: dict[str, _Known] = {}
    if manifest.exists():
        dataset = store.read(job.output)
        _check_settings(job, dataset.extra.get("settings"))
        known = {case.id: _Known(case, None) for case in dataset.cases}
    if progress.exists():
        lines = _lines(progress)
        _check_settings(job, lines[0].get("settings") if lines else None)
        for line in lines[1:]:
            case = store.case_from(line["case"])
            known[case.id] = _Known(case, line["stamps"])
    if not known and not progress.exists() and job.output.exists() and any(job.output.iterdir()):
        raise UserError(f"{job.output}: not empty; choose a new folder for --output")
    return known


def _write_progress(path: Path, job: Job, kept: Sequence[_Known]) -> None:
    """Starts the notes anew, without a line that a crash may have cut short."""
    lines = [_progress_line(entry) for entry in kept]
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({"settings": settings_of(job)}) + "\n" + "".join(lines))


def _progress_line(entry: _Known) -> str:
    return json.dumps({"case": dataclasses.asdict(entry.case), "stamps": entry.stamps}) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the notes; a line that a crash cut short ends them."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _check_settings(job: Job, found: object) -> None:
    if found != settings_of(job):
        raise UserError(
            f"{job.output}: holds data prepared with other settings; choose another --output, "
            "or delete it first"
        )
