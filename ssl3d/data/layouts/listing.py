"""The listing that a layout returns: the cases of a source folder and its problems."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ssl3d.data.layouts.source import Problem, Source
from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, companions, stem
from ssl3d.data.readers.checks import LARGEST_LABEL
from ssl3d.errors import UserError

# Usual endings of the names of label files.
LABEL_ENDING = re.compile(r"[._-](label|labels|seg|segmentation|mask|gt)$", re.IGNORECASE)
# The class of voxels that nobody annotated, as nnU-Net calls it, and their index in a prepared
# label map: they count for nothing in loss and scores (`pipeline.OUTSIDE`).
IGNORE = "ignore"
IGNORED = 255


@dataclasses.dataclass(frozen=True)
class SourceCase:
    """The files of one case.

    Attributes:
      id: unique within the data set.
      subject: the person (or animal) imaged.
      images: the files of each modality: one, or all files of a DICOM series.
      label: label map, or None.
      mask: brain mask, or None; voxels outside it become background.
      grade: class index of the whole image, or None.
    """

    id: str
    subject: str
    images: tuple[tuple[Path, ...], ...]
    label: Path | None = None
    mask: Path | None = None
    grade: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case, in a fixed order, each followed by its data if they are apart."""
        extra = [path for path in (self.label, self.mask) if path is not None]
        files = [*(path for image in self.images for path in image), *extra]
        return tuple(part for path in files for part in (path, *companions(path)))


@dataclasses.dataclass(frozen=True)
class Listing:
    """The contents of a source folder.

    Attributes:
      name: of the collection.
      rank: 3 for volumes, 2 for pictures.
      cases: sorted by id.
      modalities: names of the channels, or None if only the files tell their number.
      classes: label value (or grade) -> name, 0 is the background; values that share a name form
        one class. None if only the label maps tell.
      splits_by: "subject", or "case" for a source without subject ids.
      problems: files that cannot be used.
      notes: remarks on files that can be used, or that the layout ignores.
      classes_from: where `classes` is None, the classes by the values of each label file; raises
        `UserError`. None: every value is a class.
    """

    name: str
    rank: int
    cases: tuple[SourceCase, ...]
    modalities: tuple[str, ...] | None
    classes: dict[int, str] | None
    splits_by: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    classes_from: Callable[[Mapping[Path, Iterable[int]]], dict[int, str]] | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """The user's options for a layout.

    Attributes:
      labels: folder of label files (`folder`, `dicom`, `bids`), or a pattern of them (`folder`).
      csv: file of grades (`images`, `folder`, `dicom`, `bids`).
      modalities: names, in the order of the channels.
      classes: label value (or grade) -> name.
      subject_pattern: regular expression; its first group, searched in a case id, is the subject.
      images: pattern of the images' paths below the source (`folder`).
      kind: "CT", "MR" or "" where the recipe does not tell (`dicom`).
      rank: 2 or 3 by the recipe; None where it is not given (`folder`).
      follow_links: whether links may lead out of the source.
      no_labels: whether to leave labels and their faults alone.
    """

    labels: Path | None = None
    csv: Path | None = None
    modalities: tuple[str, ...] | None = None
    classes: dict[int, str] | None = None
    subject_pattern: str | None = None
    images: str | None = None
    kind: str = ""
    rank: int | None = None
    follow_links: bool = True
    no_labels: bool = False


def class_indices(values: dict[int, str] | None) -> dict[int, int]:
    """Label value (or grade) -> class index, as in `class_names`; `IGNORED` for `IGNORE`."""
    names = class_names(values)
    return {
        value: IGNORED if name == IGNORE else names.index(name)
        for value, name in (values or {}).items()
    }


def class_names(values: dict[int, str] | None) -> tuple[str, ...]:
    """The classes, ordered by their smallest label value; values of one name form one class.

    `IGNORE` is none.
    """
    names = (name for _, name in sorted((values or {}).items()))
    return tuple(dict.fromkeys(name for name in names if name != IGNORE))


def id_of(relative: str | Path) -> str:
    """A case id from a path below the source: separators become `-`, other characters `_`.

    Letters lose their accents; those of other scripts become their code, e.g. `u5f20`.
    """
    path = Path(relative)
    name = unicodedata.normalize("NFKD", "-".join([*path.parent.parts, stem(path)]))
    name = "".join(letter for letter in name if not unicodedata.combining(letter))
    name = re.sub(r"[^\W_a-zA-Z0-9]", lambda match: f"u{ord(match[0]):x}", name)
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", name)
    return name.lstrip("._+-") or "case"


def name_of(path: Path) -> str:
    """A path without its suffix, spelled alike whichever file system it comes from."""
    return unicodedata.normalize("NFC", (path.parent / stem(path)).as_posix())


def labels_below(source: Source, folder: Path | None) -> dict[str, Path]:
    """Name (see `name_of`) -> label file, of the files below `folder`."""
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for path in source.holding(folder).files(folder, VOLUME_SUFFIXES + PICTURE_SUFFIXES):
        source.put(found, LABEL_ENDING.sub("", name_of(path.relative_to(folder))), path)
    return found


def finish(
    source: Source,
    options: Options,
    *,
    cases: Iterable[SourceCase],
    splits_by: str,
    name: str,
    rank: int,
    modalities: tuple[str, ...] | None,
    classes: dict[int, str] | None,
    classes_from: Callable[[Mapping[Path, Iterable[int]]], dict[int, str]] | None = None,
) -> Listing:
    """The listing with unique ids, and the user's subjects, modalities and classes.

    Raises:
      ListingError: an empty source, or an option that does not apply.
    """
    # A label that could be either of two files is none; a case whose image could, is none.
    cases = (
        dataclasses.replace(case, label=None) if case.label in source.ambiguous else case
        for case in cases
    )
    cases = (case for case in cases if source.ambiguous.isdisjoint(case.files))
    kept = _without_duplicates(source, cases)
    if options.subject_pattern:
        kept, splits_by = _with_subjects(source, kept, options.subject_pattern), "subject"
    if not kept and not source.problems:
        first = next((note for note in source.notes if note.reason.startswith("left out")), None)
        hint = f" (left out: {Path(first.name).name} and others, see above)" if first else ""
        source.refuse(f"no cases found{hint}; is --layout the right one?")
    classes = options.classes or classes
    if options.no_labels:
        kept = [dataclasses.replace(case, label=None) for case in kept]
        classes = None if not any(case.grade is not None for case in kept) else classes
    for value, class_name in (classes or {}).items():
        if not 0 <= value <= LARGEST_LABEL:
            source.refuse(
                f"the class {class_name!r} has the label value {value}, which is outside 0 to "
                f"{LARGEST_LABEL}"
            )
    return Listing(
        name=name,
        rank=rank,
        cases=tuple(kept),
        modalities=options.modalities or modalities,
        classes=classes,
        splits_by=splits_by,
        problems=tuple(source.problems),
        notes=tuple(source.notes),
        classes_from=classes_from,
    )


def _without_duplicates(source: Source, cases: Iterable[SourceCase]) -> list[SourceCase]:
    """The cases with unique ids, sorted; letter case is ignored, as some file systems do.

    Different names that became one id get a part of their checksum; one name twice is a problem.
    """
    by_id: dict[str, list[SourceCase]] = {}
    for case in cases:
        by_id.setdefault(case.id.lower(), []).append(case)
    kept = []
    for same in by_id.values():
        names = [name_of(case.files[0]) for case in same]
        if len(set(names)) < len(same):
            files = ", ".join(sorted(source.relative(case.files[0]) for case in same))
            source.problem(same[0].id, f"duplicate id of {len(same)} cases ({files}); rename them")
            continue
        # The name that is spelled like the id keeps it.
        ranked = sorted(zip(names, same, strict=True), key=lambda pair: _difference(*pair))
        kept.append(ranked[0][1])
        for name, case in ranked[1:]:
            below = os.path.relpath(name, source.folder).encode(errors="surrogateescape")
            new = f"{case.id}-{hashlib.sha256(below).hexdigest()[:8]}"
            subject = new if case.subject == case.id else case.subject
            kept.append(dataclasses.replace(case, id=new, subject=subject))
    return sorted(kept, key=lambda case: case.id)


def _difference(name: str, case: SourceCase) -> tuple[bool, str]:
    return not name.endswith(case.id), name


def _with_subjects(source: Source, cases: list[SourceCase], pattern: str) -> list[SourceCase]:
    """The cases with subjects from their ids; an id that does not match is a problem."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern: not a regular expression ({error})") from None
    if not expression.groups:
        raise UserError("--subject-pattern: put parentheses around the subject")
    kept = []
    for case in cases:
        match = expression.search(case.id)
        if match and match[1]:
            kept.append(dataclasses.replace(case, subject=match[1]))
        else:
            source.problem(case.id, f"the id does not match --subject-pattern={pattern}")
    return kept
