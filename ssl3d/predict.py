"""Predicts new images with a trained network: label maps over the scans, or a table of grades.

    python -m ssl3d.predict --workdir=RUN --input=DIR_OR_FILE --output=DIR [--on-error=skip] [...]

Files are found, read, checked and prepared as those that the network was trained on.

Segmentation   OUTPUT/<case>.nii.gz: a label map on the grid of the input, with the label values
               of the training labels; a NIfTI input's header is kept. Of a picture <case>.png.
               --probabilities adds OUTPUT/probabilities/<case>.nii.gz, float32, a volume for
               each class (of a picture <case>.tif, a page for each class).
Classification OUTPUT/predictions.csv: id, file, grade, class, a probability for each class.

Each file appears whole or not at all. Run again, everything is predicted again and replaced.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssl3d.atomic import atomic_write
from ssl3d.cli import Parser, run
from ssl3d.data import geometry, store, writers
from ssl3d.data.layouts import LAYOUTS, list_cases
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish, id_of
from ssl3d.data.preparation import case as preparation
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, stem
from ssl3d.downstream import predictor
from ssl3d.downstream.predictor import Trained
from ssl3d.errors import UserError

TABLE = "predictions.csv"
# These say by a file of their own that a folder is one of theirs, the next by names in the tree.
DESCRIBED_LAYOUTS = ("msd", "nnunet")
NAMED_LAYOUTS = ("bids", "brats", "dicom", "ukb")
# As nnU-Net names the channels of a case.
CHANNEL_NAME = re.compile(r"(.+)_(\d{4})")
# Ids like BraTS-GLI-00003-000, in which the enhancing tumour is 3 and no longer 4.
BRATS_2023 = re.compile(r"BraTS-[A-Za-z]+-\d+", re.IGNORECASE)

# Of a case where it lies, what a manifest would say of it, and its prepared image [*S, C].
Found = tuple[SourceCase, store.Case, np.ndarray]


def parser() -> Parser:
    """The command's options."""
    result = Parser(prog="python -m ssl3d.predict", description=__doc__)
    add = result.add_argument
    add("--workdir", required=True, type=Path, help="folder of the segmentation or classification")
    add("--input", required=True, type=Path, help="a file, or a folder of images")
    add("--output", required=True, type=Path, help="folder of the predictions")
    add(
        "--layout",
        choices=sorted(LAYOUTS),
        help="how the files are arranged; default: as the training data, if it looks like it, "
        "else every image below the folder is a case (CASE_0000, CASE_0001: its channels)",
    )
    add("--probabilities", action="store_true", help="of a segmentation, write these too")
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip leaves bad files out")
    predictor.add_options(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    try:
        print(predict(options))
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or options.output
        raise UserError(f"{where}: {error.strerror}; mend that and run again") from None


def predict(options: argparse.Namespace) -> str:
    """Predicts all inputs; returns the last line. Raises `UserError`, and OSError of the disk."""
    started = time.monotonic()
    trained = predictor.load(options.workdir, options.model, options.mirror, options.overlap)
    dataset = trained.model.dataset
    segments = trained.model.config.task.name == "segmentation"
    if options.probabilities and not segments:
        raise UserError(f"--probabilities: is for segmentation; {TABLE} always has them")
    place = options.input.resolve()
    check_output(place, options.output)
    if "phantom" in dataset.extra:
        raise UserError(
            f"{options.workdir}: was trained on built-in phantoms, of which there are no files to "
            "predict; python -m ssl3d.evaluate scores it"
        )
    job = preparation.settings_of_dataset(dataset, place if place.is_dir() else place.parent)
    listing = list_inputs(place, dataset, options.layout)
    for note in listing.notes:
        say(f"note: {note.name}: {note.reason}")
    skip = options.on_error == "skip"
    for problem in listing.problems:
        leave_out(f"{problem.name}: {problem.reason}", skip)
    options.output.mkdir(parents=True, exist_ok=True)
    found = prepared_cases(listing.cases, job, skip)
    if segments:
        count = segment_all(trained, found, job, options.output, options.probabilities)
        what = "label map" if count == 1 else "label maps"
    else:
        count = classify_all(trained, found, job, options.output)
        what = f"row in {TABLE}" if count == 1 else f"rows in {TABLE}"
    missing = len(listing.cases) + len(listing.problems) - count
    what += f", {missing} left out" if missing else ""
    return f"{options.output}: {count} {what}; {time.monotonic() - started:.1f} s"


def check_output(place: Path, output: Path) -> None:
    """Raises `UserError` where predictions would land among the inputs, or over one."""
    output = output.resolve()
    if not place.exists():
        raise UserError(f"--input={place}: no such file or folder")
    if output.is_relative_to(place) or (place.is_file() and output == place.parent):
        raise UserError(f"--output={output} lies inside the input; choose another folder")


def say(line: str) -> None:
    """A line on stderr, above the progress bar."""
    tqdm.write(" ".join(line.split()), file=sys.stderr)


def leave_out(line: str, skip: bool) -> None:
    """Names a case that cannot be predicted. Raises `UserError` unless it is to be skipped."""
    if not skip:
        raise UserError(f"{line} (--on-error=skip leaves it out)")
    say(f"left out: {line}")


# What there is to predict.


def list_inputs(place: Path, dataset: store.Dataset, layout: str | None = None) -> Listing:
    """The cases of a file or a folder; their labels, if there are any, are left alone.

    Args:
      place: resolved.
      dataset: that the network was trained on.
      layout: of a folder; None: that of the data set where the folder looks like it.

    Raises:
      UserError: there is nothing to predict.
    """
    options = Options(modalities=dataset.modalities)
    if place.is_file():
        case = SourceCase(id_of(place.name), id_of(place.name), ((place,),))
        return Listing(place.name, dataset.rank, (case,), dataset.modalities, None, "case")
    if layout is None:
        own = dataset.extra.get("layout")
        listing = None
        if own in DESCRIBED_LAYOUTS and (place / "dataset.json").is_file():
            listing = list_cases(own, place, options)
        elif own in NAMED_LAYOUTS:
            with contextlib.suppress(UserError):  # not one of that layout's names is there
                listing = list_cases(own, place, options)
        listing = listing or plain(place, dataset, own == "nnunet")
    elif layout == "nnunet" and not (place / "dataset.json").is_file():
        listing = channel_files(place, dataset)
    elif layout == "images":  # whose grades are not asked for
        listing = plain(place, dataset)
    else:
        listing = list_cases(layout, place, options)
    cases = tuple(dataclasses.replace(case, label=None, grade=None) for case in listing.cases)
    return dataclasses.replace(listing, cases=cases)


def plain(place: Path, dataset: store.Dataset, numbered: bool = False) -> Listing:
    """A folder of cases, of their channels (a single one too if `numbered`), or of series."""
    suffixes = VOLUME_SUFFIXES if dataset.rank == 3 else PICTURE_SUFFIXES
    files = list(Source(place).files(place, suffixes))
    one = len(dataset.modalities) == 1
    if (numbered or not one) and any(stem(path).endswith("_0000") for path in files):
        return channel_files(place, dataset)
    if not files and dataset.rank == 3 and one:
        return list_cases("dicom", place)
    return list_cases("folder", place)


def channel_files(place: Path, dataset: store.Dataset) -> Listing:
    """As nnU-Net wants its input: CASE_0000.nii.gz is the first channel of CASE."""
    source = Source(place)
    channels: dict[Path, dict[int, Path]] = {}
    for path in source.files(place, VOLUME_SUFFIXES):
        match = CHANNEL_NAME.fullmatch(stem(path))
        if match:
            source.put(channels.setdefault(path.with_name(match[1]), {}), int(match[2]), path)
        else:
            source.problem(path, "the name does not end in a channel number like _0000")
    cases = []
    for name, paths in channels.items():
        wanted = range(len(dataset.modalities))
        missing = [number for number in wanted if number not in paths]
        if missing:
            what = f"channel {missing[0]:04d} ({dataset.modalities[missing[0]]})"
            source.problem(name, f"{what} is missing")
        elif len(paths) > len(wanted):
            source.problem(paths[max(paths)], f"the network takes only {len(wanted)} channels")
        else:
            case = id_of(name.relative_to(place))
            cases.append(SourceCase(case, case, tuple((paths[number],) for number in wanted)))
    about = {"name": place.name, "rank": 3, "modalities": dataset.modalities, "classes": None}
    return finish(source, Options(), cases=cases, splits_by="case", **about)


def prepared_cases(
    cases: Sequence[SourceCase], job: preparation.PreparationSettings, skip: bool
) -> Iterator[Found]:
    """Prepares one case after another, the next in a thread while the caller is busy with this.

    Raises:
      UserError: a case cannot be read or prepared; with `skip`, if none can.
    """

    def prepare(case: SourceCase) -> Found:
        prepared = preparation.prepare_arrays(case, job)
        # The network was trained on images from the store, which keeps them in half precision.
        return case, prepared.case, prepared.image.astype(np.float16)

    count = 0
    bar = tqdm(total=len(cases), desc="predicting", unit="case", disable=None)
    with bar, concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(prepare, cases[0]) if cases else None
        for _, following in itertools.pairwise([*cases, None]):
            current, upcoming = upcoming, following and pool.submit(prepare, following)
            try:
                found = current.result()
            except UserError as error:
                leave_out(str(error), skip)
            else:
                count += 1
                yield found
            bar.update()
    if not count:
        raise UserError(f"{job.source}: nothing that could be predicted, see above")


def segment_all(
    trained: Trained,
    cases: Iterable[Found],
    job: preparation.PreparationSettings,
    output: Path,
    with_probabilities: bool,
) -> int:
    """Writes the label map of each case; returns how many."""
    count = 0
    brats = trained.model.dataset.extra.get("layout") == "brats"
    for source, case, image in cases:
        probabilities = predictor.segment(trained, image)
        if with_probabilities:
            parts = on_source_grid(trained, probabilities, case)
            channels = probabilities.shape[-1]
            writers.write_on_source_grid(
                output / "probabilities", source, case, parts, np.dtype(np.float32), channels
            )
        values = label_values(job, case.id, brats)
        labels = predictor.to_source_grid(trained, probabilities, case)
        writers.write_on_source_grid(output, source, case, [values[labels]], values.dtype)
        count += 1
    return count


def label_values(job: preparation.PreparationSettings, case: str, brats: bool) -> np.ndarray:
    """Class index -> value in label files, uint8 [K], or uint16 where that does not do.

    Where several values are one class, the smallest. Of the two that BraTS has had for the
    enhancing tumour, the one of the year that the case's id is of.
    """
    choose = max if brats and not BRATS_2023.match(case) else min
    values = [
        choose(value for value, index in job.values.items() if index == label)
        for label in range(job.classes)
    ]
    return np.array(values, np.min_scalar_type(max(values)))


def on_source_grid(
    trained: Trained, probabilities: np.ndarray, case: store.Case
) -> Iterator[np.ndarray]:
    """Of each channel of [*S, K] the probabilities on the source's grid, float32, one at a time.

    What the preparation cropped away is background.
    """
    inside, _ = geometry.to_source(np.ones(case.shape, bool), case)
    for channel in range(probabilities.shape[-1]):
        part, _ = geometry.to_source(probabilities[..., channel], case, "linear")
        # Regions with a sigmoid each have no channel for the background.
        background = channel == 0 and not trained.model.config.task.regions
        yield np.where(inside, part, np.float32(background))


def classify_all(
    trained: Trained, cases: Iterable[Found], job: preparation.PreparationSettings, output: Path
) -> int:
    """Writes the table of all cases; returns how many."""
    classes = trained.model.dataset.classes
    grades = label_values(job, "", brats=False)
    entries: list[store.Case] = []

    def images() -> Iterator[np.ndarray]:
        for _, case, image in cases:
            entries.append(case)
            yield image

    with atomic_write(output / TABLE) as path, path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "file", "grade", "class", *(f"probability {c}" for c in classes)])
        for number, probability in enumerate(predictor.classify(trained, images())):
            case, answer = entries[number], int(predictor.grade_of(trained, probability))
            row = [case.id, ";".join(case.extra["source"]), grades[answer], classes[answer]]
            table.writerow(row + [f"{p:.6f}" for p in probability])
    return len(entries)


if __name__ == "__main__":
    run(main)
