"""DICOM: any tree of files; their headers tell which series they belong to."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from ssl3d.data.layouts.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    finish,
    id_of,
    labels_below,
)
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import dicom
from ssl3d.errors import UserError

# Files that are opened to recognise the layout.
_LOOKED_AT = 1000


class Series(NamedTuple):
    """The files of a series, the folder that holds them all (or its only file), its header."""

    where: Path
    info: dicom.SeriesInfo
    files: list[Path]


def find(folder: Path, options: Options) -> Listing:
    """One case per series of the user's modality, else of the most frequent one.

    Raises `UserError`.
    """
    source = Source(folder, options.follow_links)
    series = _find_series(source, folder, options.labels)
    wanted = _modality(source, [one.info.modality for one in series], options)
    found = {} if options.no_labels else labels_below(source, options.labels)
    labels = {id_of(name): path for name, path in found.items()}
    names = _names(source, series)
    cases = []
    for one, name in zip(series, names, strict=True):
        if one.info.modality != wanted.name:
            labels.pop(name, None)
            if wanted.chosen:
                source.note(one.where, f"left out: modality {one.info.modality}")
            else:
                what = f"modality {one.info.modality}, but most series are {wanted.name}"
                source.problem(one.where, f"{what}; choose with --modalities")
            continue
        label = labels.pop(name, None)
        cases.append(SourceCase(name, one.info.patient or name, (tuple(one.files),), label))
    for path in labels.values():
        source.problem(path, "a label without a series of this name")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject" if all(one.info.patient for one in series) else "case",
        name=folder.resolve().name,
        rank=3,
        modalities=(wanted.name or "image",),
        classes=None,
    )


class _Modality(NamedTuple):
    name: str
    chosen: bool  # by the user


def _modality(source: Source, found: list[str], options: Options) -> _Modality:
    """The user's modality, else the most frequent one. Raises `UserError`: two are as frequent."""
    counts = Counter(found)
    for word in (*(options.modalities or ()), options.kind):
        if word.upper() in counts:
            return _Modality(word.upper(), chosen=True)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        (first, count), (second, _) = ranked[:2]
        source.refuse(
            f"{count} series are {first} and as many {second}; choose, e.g. --modalities={first}"
        )
    return _Modality(ranked[0][0] if ranked else "", chosen=False)


def _names(source: Source, series: list[Series]) -> list[str]:
    """Case ids: the folder (or file) of a series; with its number where several share a folder."""
    sharing = Counter(one.where for one in series)
    numbers = Counter((one.where, one.info.number) for one in series)
    names = []
    for one in series:
        if one.where == source.folder:
            name = one.info.patient or "case"
        else:
            name = source.relative(one.where)
        if sharing[one.where] > 1:
            unique = one.info.number and numbers[one.where, one.info.number] == 1
            name += f"-{one.info.number if unique else one.info.series or 'no-UID'}"
        names.append(id_of(name))
    return names


def _find_series(source: Source, folder: Path, labels: Path | None) -> list[Series]:
    """The series with images, sorted by path; what else is there is noted."""
    groups: dict[tuple[str, ...], list[tuple[Path, dicom.SeriesInfo]]] = defaultdict(list)
    others: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for path in source.files(folder):
        if labels is not None and path.is_relative_to(labels):
            continue
        try:
            info = dicom.read_info(path)
        except UserError as error:
            source.problem(path, str(error).removeprefix(f"{path}: "))
            continue
        if info is None:
            others.append(source.relative(path))
        elif info.no_image or info.frames == 0:
            left_out[info.no_image or "no image"].append(source.relative(path))
        else:
            # Without a UID the folder is all that tells.
            series = info.series or f"in {path.parent}"
            groups[info.patient, series, info.modality, info.volume].append((path, info))
    if others:
        source.note(folder, f"{len(others)} files are not DICOM images (first: {others[0]})")
    for what, names in left_out.items():
        source.note(folder, f"left out: {len(names)} files are {what} (first: {names[0]})")
    return sorted(
        (_series(source, members) for members in groups.values()), key=lambda one: one.files
    )


def _series(source: Source, members: list[tuple[Path, dicom.SeriesInfo]]) -> Series:
    """The series of some files, without second copies of a file."""
    kept: dict[str, Path] = {}
    for path, info in members:
        first = kept.setdefault(info.instance or str(path), path)
        if first != path:
            source.note(path, f"left out: the same image as {source.relative(first)}, by its UID")
    files = list(kept.values())
    info = members[0][1]
    if len(files) == 1 and info.frames > 1:
        return Series(files[0], info, files)
    return Series(Path(os.path.commonpath([path.parent for path in files])), info, files)


def evidence(found: Survey) -> str:
    """See `recognise`. BIDS has a place for the files that its images were made from."""
    for path in found.others[:_LOOKED_AT]:
        below = path.relative_to(found.folder)
        if below.parts[0] == "sourcedata":
            continue
        with contextlib.suppress(UserError):
            info = dicom.read_info(path)
            if info is not None and not info.no_image and info.frames:
                return f"{below.as_posix()} is a DICOM image"
    return ""
