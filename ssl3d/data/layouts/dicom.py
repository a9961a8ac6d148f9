"""DICOM: any tree with one folder per series, or one multi-frame file per volume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ssl3d.data.layouts.listing import (
    Listing,
    Options,
    Source,
    SourceCase,
    finish,
    id_of,
    labels_below,
)
from ssl3d.data.readers import dicom
from ssl3d.errors import UserError


def find(folder: Path, options: Options) -> Listing:
    """One case per series of the most frequent modality. Raises `UserError`."""
    source = Source(folder)
    series, others = _find_series(source, folder, options.labels)
    if others:
        source.note(folder, f"{len(others)} files are not DICOM images (first: {others[0]})")
    modalities = Counter(info.modality for _, info, _ in series)
    common = modalities.most_common(1)[0][0] if modalities else ""
    labels = labels_below(source, options.labels)
    cases = []
    for where, info, files in series:
        name = id_of(source.relative(where)) if where != folder else id_of(info.patient or "case")
        if info.modality != common:
            source.problem(where, f"modality {info.modality}, but most series are {common}")
            continue
        cases.append(
            SourceCase(name, info.patient or name, (tuple(files),), labels.pop(name, None))
        )
    for path in labels.values():
        source.problem(path, "a label without a series of this name")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject" if all(info.patient for _, info, _ in series) else "case",
        name=folder.resolve().name,
        rank=3,
        modalities=(common or "image",),
        classes=None,
    )


def _find_series(
    source: Source, folder: Path, labels: Path | None
) -> tuple[list[tuple[Path, dicom.SeriesInfo, list[Path]]], list[str]]:
    """The series, sorted by path, and the paths of the files without DICOM images."""
    folders: dict[Path, dict[str, tuple[dicom.SeriesInfo, list[Path]]]] = {}
    found: list[tuple[Path, dicom.SeriesInfo, list[Path]]] = []
    others = []
    for path in source.files(folder):
        if labels is not None and path.is_relative_to(labels):
            continue
        try:
            info = dicom.read_info(path)
        except UserError as error:
            source.problem(path, str(error).removeprefix(f"{path}: "))
            continue
        if info is None or info.frames == 0:
            others.append(source.relative(path))
        elif info.frames > 1:
            found.append((path, info, [path]))
        else:
            series = folders.setdefault(path.parent, {})
            series.setdefault(info.series, (info, []))[1].append(path)
    for where, series in folders.items():
        if len(series) > 1:
            what = ", ".join(
                f"{info.description or info.series or 'no UID'} ({len(files)} slices)"
                for info, files in series.values()
            )
            source.problem(where, f"{len(series)} series in one folder: {what}; one folder each")
            continue
        found += [(where, info, files) for info, files in series.values()]
    return sorted(found, key=lambda entry: entry[0]), others
