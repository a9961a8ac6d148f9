"""The images that a trained network is to predict: a file, or a folder in any arrangement."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from ssl3d.data import store
from ssl3d.data.layouts import list_cases
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish, id_of
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, stem
from ssl3d.errors import UserError

# Recognised by a file that describes the folder, and by the names of files and folders.
DESCRIBED_LAYOUTS = ("msd", "nnunet")
NAMED_LAYOUTS = ("bids", "brats", "dicom", "ukb")
# nnU-Net's names for the channels of a case.
CHANNEL_NAME = re.compile(r"(.+)_(\d{4})")


def list_inputs(place: Path, dataset: store.Dataset, layout: str | None = None) -> Listing:
    """The cases of a file or a folder, without their labels and grades.

    Args:
      place: resolved.
      dataset: the network's training data.
      layout: of a folder; None: that of `dataset` if the folder has it, else any image is a case.

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
            with contextlib.suppress(UserError):  # no name of that layout is there
                listing = list_cases(own, place, options)
        listing = listing or plain(place, dataset, own == "nnunet")
    elif layout == "nnunet" and not (place / "dataset.json").is_file():
        listing = channel_files(place, dataset)
    elif layout == "images":  # which would ask for a table of grades
        listing = plain(place, dataset)
    else:
        listing = list_cases(layout, place, options)
    cases = tuple(dataclasses.replace(case, label=None, grade=None) for case in listing.cases)
    return dataclasses.replace(listing, cases=cases)


def plain(place: Path, dataset: store.Dataset, numbered: bool = False) -> Listing:
    """A folder of cases, of their channels, or of DICOM series.

    Args:
      numbered: a single channel has a number in its name too.
    """
    suffixes = VOLUME_SUFFIXES if dataset.rank == 3 else PICTURE_SUFFIXES
    files = list(Source(place).files(place, suffixes))
    one = len(dataset.modalities) == 1
    if (numbered or not one) and any(stem(path).endswith("_0000") for path in files):
        return channel_files(place, dataset)
    if not files and dataset.rank == 3 and one:
        return list_cases("dicom", place, Options(modalities=dataset.modalities))
    return list_cases("folder", place)


def channel_files(place: Path, dataset: store.Dataset) -> Listing:
    """nnU-Net's input: CASE_0000.nii.gz is the first channel of CASE."""
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
    return finish(
        source,
        Options(),
        name=place.name,
        rank=3,
        modalities=dataset.modalities,
        classes=None,
        cases=cases,
        splits_by="case",
    )
