"""Predicts the images of a file or a folder with a trained network, and writes the predictions."""

from __future__ import annotations

import concurrent.futures
import itertools
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ssl3d import tasks
from ssl3d.data import dicom_seg
from ssl3d.data.layouts import inputs
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation import case as preparation
from ssl3d.data.readers.checks import enough_memory
from ssl3d.downstream import contract, predictor
from ssl3d.downstream.contract import PreparedImage
from ssl3d.errors import UserError

# Ids such as BraTS-GLI-00003-000, with the label values of 2023: the enhancing tumour is 3, not 4.
BRATS_2023 = re.compile(r"BraTS-[A-Za-z]+-\d+", re.IGNORECASE)


def predict(
    *,
    workdir: Sequence[Path],
    input: Path,
    output: Path,
    layout: str | None,
    format: contract.Format,
    probabilities: bool,
    pictures: bool,
    on_error: Literal["stop", "skip"],
    model: str,
    mirror: bool,
    overlap: float | None,
) -> str:
    """Runs `ssl3d.predict`, whose options these are; returns its closing line.

    Several `workdir`s are an ensemble.

    Raises:
      UserError: a run, images or options that do not fit each other, or an image that cannot be
        read or prepared.
      OSError: the output cannot be written.
    """
    started = time.monotonic()
    trained = predictor.load_ensemble(workdir, model, mirror, overlap)
    config, dataset = trained.model.config, trained.model.dataset
    if probabilities and tasks.needs(config) != "label_map":
        raise UserError("--probabilities: is for segmentation; tables always have them")
    if format == "dicom-seg":
        if tasks.needs(config) != "label_map" or dataset.rank == 2:
            raise UserError("--format=dicom-seg: is for the segmentation of volumes; leave it out")
        dicom_seg.check_installed()
    place = input.resolve()
    check_output(place, output)
    if "phantom" in dataset.extra:
        raise UserError(
            f"{workdir[0]}: trained on built-in phantoms, for which there are no files to predict; "
            "score it with python -m ssl3d.evaluate"
        )
    settings = preparation.settings_of_dataset(dataset, place if place.is_dir() else place.parent)
    listing = inputs.list_inputs(place, dataset, layout)
    for note in listing.notes:
        report(f"note: {note.name}: {note.reason}")
    skip = on_error == "skip"
    for problem in listing.problems:
        leave_out(f"{problem.name}: {problem.reason}", skip)
    cases = [case for case in listing.cases if _has_format(case, format, skip)]
    output.mkdir(parents=True, exist_ok=True)
    images = _noted(prepared_images(cases, settings, skip))
    count, what = contract.module_of(config).write_predictions(
        trained, images, settings, contract.Outputs(output, format, probabilities, pictures, skip)
    )
    missing = len(listing.cases) + len(listing.problems) - count
    what += f", {missing} left out" if missing else ""
    return f"{output}: {count} {what}; {time.monotonic() - started:.1f} s"


def _noted(images: Iterator[PreparedImage]) -> Iterator[PreparedImage]:
    """The images, with a line for what may be wrong with one."""
    for image in images:
        for note in image.case.extra.get("notes", ()):
            report(f"note: {image.source.id}: {note}")
        yield image


def _has_format(case: SourceCase, format: contract.Format, skip: bool) -> bool:
    """Whether the case's prediction can be written so; known before anything is predicted."""
    if format == "dicom-seg":
        try:
            dicom_seg.check_source(case)
        except UserError as error:
            leave_out(str(error), skip)
            return False
    return True


def check_output(place: Path, output: Path) -> None:
    """Raises `UserError` where predictions would be written among the inputs, or over one."""
    output = output.resolve()
    if not place.exists():
        raise UserError(f"--input={place}: no such file or folder")
    if output.is_relative_to(place) or (place.is_file() and output == place.parent):
        raise UserError(f"--output={output} lies inside the input; choose another folder")


def report(line: str) -> None:
    """Prints one line to stderr, above the progress bar."""
    tqdm.write(" ".join(line.split()), file=sys.stderr)


def leave_out(line: str, skip: bool) -> None:
    """Reports a case that cannot be predicted. Raises `UserError` unless `skip`."""
    if not skip:
        raise UserError(f"{line} (--on-error=skip leaves it out)")
    report(f"left out: {line}")


def prepared_images(
    cases: Sequence[SourceCase], settings: preparation.PreparationSettings, skip: bool
) -> Iterator[PreparedImage]:
    """Prepares the cases in order, the next one in a thread while the caller uses this one.

    Raises:
      UserError: a case cannot be read or prepared; with `skip`, none of them can.
    """

    def prepare(case: SourceCase) -> PreparedImage:
        with enough_memory(case.files[0]):
            prepared = preparation.prepare_arrays(case, settings)
        # In half precision, as the store keeps the training images.
        return PreparedImage(case, prepared.case, prepared.image.astype(np.float16))

    count = 0
    bar = tqdm(total=len(cases), desc="predicting", unit="case", disable=None)
    with bar, concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(prepare, cases[0]) if cases else None
        for _, following in itertools.pairwise([*cases, None]):
            assert upcoming is not None  # a case follows, so it was submitted
            current, upcoming = upcoming, pool.submit(prepare, following) if following else None
            try:
                found = current.result()
            except UserError as error:
                leave_out(str(error), skip)
            else:
                count += 1
                yield found
            bar.update()
    check_any(count, settings)


def check_any(count: int, settings: preparation.PreparationSettings) -> None:
    """Raises `UserError` where no case is left."""
    if not count:
        raise UserError(f"{settings.source}: nothing that could be predicted, see above")


def label_values(
    settings: preparation.PreparationSettings, brats_id: str | None = None
) -> np.ndarray:
    """Class index -> value in label files, uint8 [K], or uint16 for larger values.

    The smallest where several values are one class.

    Args:
      brats_id: of a BraTS case: of the two values for the enhancing tumour, its year's.
    """
    choose = max if brats_id is not None and not BRATS_2023.match(brats_id) else min
    values = [
        choose(value for value, index in settings.values.items() if index == label)
        for label in range(settings.classes)
    ]
    return np.array(values, np.min_scalar_type(max(values)))
