"""BIDS: sub-X[/ses-Y]/anat/sub-X[_ses-Y]_T1w.nii.gz; labels (dseg) below derivatives."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

from ssl3d import documents
from ssl3d.data.layouts.listing import Listing, Options, Source, SourceCase, finish
from ssl3d.data.layouts.survey import Survey
from ssl3d.data.readers import VOLUME_SUFFIXES, stem
from ssl3d.errors import UserError

NAME = re.compile(r"sub-(?P<sub>[^_]+)(_ses-(?P<ses>[^_]+))?(_.+)?_(?P<suffix>[A-Za-z0-9]+)")
LABELS = ("dseg", "mask", "seg")
# Parts of a name that tell images of one session apart.
PARTS = re.compile(r"_((?:acq|ce|rec|run|echo|part)-[^_]+)")


def find(folder: Path, options: Options) -> Listing:
    """One case per session, with the modalities that most sessions have. Raises `UserError`."""
    source = Source(folder, options.follow_links)
    derivatives = options.labels or folder / "derivatives"
    sessions: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for path in source.files(folder, VOLUME_SUFFIXES):
        match = NAME.fullmatch(stem(path))
        if path.is_relative_to(derivatives) or path.parent.name != "anat" or not match:
            continue
        if path.relative_to(folder).parts[0] == f"sub-{match['sub']}":
            key = (match["sub"], match["ses"] or "")
            sessions.setdefault(key, {}).setdefault(match["suffix"], []).append(path)
    modalities = options.modalities or _common_suffixes(list(sessions.values()))
    labels = {} if options.no_labels else _labels(source, derivatives)
    cases = []
    for (subject, session), found in sessions.items():
        name = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        masks = labels.pop((subject, session), [])
        missing = [modality for modality in modalities if modality not in found]
        if missing:
            source.problem(name, f"missing modality {missing[0]} in its anat folder")
            continue
        if len(masks) > 1:
            masks = [mask for mask in masks if _same_run(mask, found[modalities[0]][:1])] or masks
        if len(masks) > 1:
            both = " and ".join(str(path) for path in masks[:2])
            source.problem(name, f"several labels ({both}); choose with --labels=DIR")
            masks = []
        for modality in modalities:
            found[modality] = _closest_first(found[modality], masks)
            if len(found[modality]) > 1:
                first = found[modality][0]
                source.note(name, f"several {modality} files; {first.name} is used")
        images = tuple((found[modality][0],) for modality in modalities)
        if masks and not _same_run(masks[0], [paths[0] for paths in images]):
            source.problem(masks[0], "a label of another run than the images")
            masks = []
        cases.append(SourceCase(name, f"sub-{subject}", images, masks[0] if masks else None))
    for paths in labels.values():
        source.problem(paths[0], "a label without an image")
    if any(case.label for case in cases):
        for case in cases:
            if case.label is None:
                source.note(case.id, "no label in the derivatives; used as unlabelled")
    return finish(
        source,
        options,
        cases=cases,
        splits_by="subject",
        name=folder.resolve().name,
        rank=3,
        modalities=tuple(modalities),
        classes=options.classes or (None if options.no_labels else _classes(derivatives)),
    )


def _parts(path: Path) -> set[str]:
    return set(PARTS.findall(stem(path)))


def _closest_first(images: list[Path], labels: list[Path]) -> list[Path]:
    """The image that the label was drawn on, by its name, before the others."""
    parts = _parts(labels[0]) if labels else set()
    return sorted(images, key=lambda path: -len(parts & _parts(path)))


def _same_run(label: Path, images: list[Path]) -> bool:
    """Whether a label names no run, or that of an image; or the images name none."""
    own, *others = (
        {part for part in _parts(path) if part.startswith("run-")} for path in (label, *images)
    )
    return not own or not any(others) or any(own & other for other in others)


def _common_suffixes(sessions: list[dict[str, list[Path]]]) -> tuple[str, ...]:
    """The modalities (T1w, FLAIR, ...) of more than half of the sessions, sorted."""
    counts = Counter(name for found in sessions for name in found)
    common = sorted(name for name, count in counts.items() if 2 * count > len(sessions))
    return tuple(common or sorted(counts)[:1])


def _labels(source: Source, derivatives: Path) -> dict[tuple[str, str], list[Path]]:
    """(subject, session) -> label files of one kind, the first in `LABELS`."""
    by_kind: dict[tuple[str, str], dict[str, list[Path]]] = {}
    if derivatives.is_dir():
        for path in source.holding(derivatives).files(derivatives, VOLUME_SUFFIXES):
            match = NAME.fullmatch(stem(path))
            if match and match["suffix"] in LABELS:
                key = (match["sub"], match["ses"] or "")
                by_kind.setdefault(key, {}).setdefault(match["suffix"], []).append(path)
    return {
        key: next(found[kind] for kind in LABELS if kind in found) for key, found in by_kind.items()
    }


def _classes(derivatives: Path) -> dict[int, str] | None:
    """Class names from every *dseg.tsv (columns index and name); None without one."""
    classes: dict[int, str] = {}
    for path in sorted(derivatives.rglob("*dseg.tsv")) if derivatives.is_dir() else ():
        try:
            text = documents.read_text(path, "correct it")
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
            found = {0: "background"} | {int(row["index"]): row["name"] for row in rows}
        except (OSError, csv.Error, KeyError, TypeError, ValueError):
            raise UserError(f"{path}: not a table with the columns index and name") from None
        for value, name in found.items():
            if classes.setdefault(value, name) != name:
                raise UserError(
                    f"{path}: calls the label {value} {name!r}, another table {classes[value]!r}; "
                    "name the classes with --classes, or choose labels with --labels=DIR"
                )
    return classes or None


def evidence(found: Survey) -> str:
    """See `recognise`."""
    for path in found.volumes:
        match = NAME.fullmatch(stem(path))
        below = path.relative_to(found.folder)
        if match and path.parent.name == "anat" and below.parts[0] == f"sub-{match['sub']}":
            return below.as_posix()
    return ""
