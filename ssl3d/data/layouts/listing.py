"""The listing that a layout returns: the cases of a source folder and its problems."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ssl3d.data.readers import PICTURE_SUFFIXES, VOLUME_SUFFIXES, stem, suffix
from ssl3d.data.readers.checks import LARGEST_LABEL
from ssl3d.errors import UserError

K = TypeVar("K")

# Usual endings of the names of label files.
LABEL_ENDING = re.compile(r"[._-](label|labels|seg|segmentation|mask|gt)$", re.IGNORECASE)


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
        """All files of the case, in a fixed order."""
        extra = tuple(path for path in (self.label, self.mask) if path is not None)
        return tuple(path for image in self.images for path in image) + extra


@dataclasses.dataclass(frozen=True)
class Problem:
    """The name of a case, file or folder, and what is wrong with it in one line."""

    name: str
    reason: str


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
    """

    name: str
    rank: int
    cases: tuple[SourceCase, ...]
    modalities: tuple[str, ...] | None
    classes: dict[int, str] | None
    splits_by: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
    """The user's options for a layout.

    Attributes:
      labels: folder of label files (`folder`, `dicom`, `bids`).
      csv: file of grades (`images`).
      modalities: names, in the order of the channels.
      classes: label value (or grade) -> name.
      subject_pattern: regular expression; its first group, searched in a case id, is the subject.
    """

    labels: Path | None = None
    csv: Path | None = None
    modalities: tuple[str, ...] | None = None
    classes: dict[int, str] | None = None
    subject_pattern: str | None = None


class Source:
    """A source folder and the problems found in it so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.ambiguous: set[Path] = set()

    def problem(self, name: object, reason: str) -> None:
        """Records a file that cannot be used, once."""
        problem = Problem(str(name), reason)
        if problem not in self.problems:
            self.problems.append(problem)

    def note(self, name: object, reason: str) -> None:
        """Records a remark."""
        self.notes.append(Problem(str(name), reason))

    def holding(self, folder: Path) -> Source:
        """This source if `folder` lies inside it, else a new one that shares the problems."""
        if folder.is_relative_to(self.folder):
            return self
        other = Source(folder)
        other.problems, other.ambiguous = self.problems, self.ambiguous
        return other

    def inside(self, path: Path) -> bool:
        """Whether the path, links resolved, exists inside the source; if not, a problem."""
        reason = self._why_unusable(path)
        if reason:
            self.problem(path, reason)
        return reason is None

    def _why_unusable(self, path: Path) -> str | None:
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a link to itself, a NUL in the name
            resolved = path
        if not resolved.is_relative_to(self.root):
            return "leaves the source folder; copy the file into it"
        if os.path.isfile(path) or os.path.isdir(path):
            return None
        if os.path.exists(path):  # a pipe: reading it would block forever
            return "not a file; remove it"
        what = "a broken link" if os.path.islink(path) else "no such file"
        return f"{what}; restore the file"

    def put(self, found: dict[K, Path], key: K, path: Path) -> None:
        """Sets `found[key]`; a second file for a key is a problem and excludes the case."""
        if key in found:
            self.problem(path, f"a duplicate of {found[key].name}; keep one of them")
            self.ambiguous.add(found[key])
        found.setdefault(key, path)

    def files(self, folder: Path, suffixes: Sequence[str] | None = None) -> Iterator[Path]:
        """All files below `folder`, sorted, without hidden ones; links are checked.

        Args:
          folder: the root of the search.
          suffixes: of the files wanted (see `readers.suffix`); None for all files.
        """
        for root, folders, names in os.walk(folder, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                path = Path(root, name)
                # The files of a linked folder are found under their own path.
                if path.is_symlink():
                    self.inside(path)
            for name in sorted(names):
                path = Path(root, name)
                # macOS adds a "._" file beside every file of an archive.
                if name.startswith(".") or (suffixes and suffix(path) not in suffixes):
                    continue
                if self.inside(path):
                    yield path

    def _unreadable(self, error: OSError) -> None:
        self.problem(error.filename, f"cannot be read ({error.strerror})")

    def relative(self, path: Path) -> str:
        """The path below the source, for names and messages."""
        return path.relative_to(self.folder).as_posix()


def class_indices(values: dict[int, str] | None) -> dict[int, int]:
    """Label value (or grade) -> class index, as in `class_names`."""
    names = class_names(values)
    return {value: names.index(name) for value, name in (values or {}).items()}


def class_names(values: dict[int, str] | None) -> tuple[str, ...]:
    """The classes, ordered by their smallest label value; values of one name form one class."""
    return tuple(dict.fromkeys((values or {})[value] for value in sorted(values or {})))


def id_of(relative: str | Path) -> str:
    """A case id from a path below the source: separators become `-`, other characters `_`."""
    path = Path(relative)
    parts = [*path.parent.parts, stem(path)]
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(parts))
    return name.lstrip("._+-") or "case"


def labels_below(source: Source, folder: Path | None) -> dict[str, Path]:
    """Case id -> label file, by the names of the files below `folder`."""
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for path in source.holding(folder).files(folder, VOLUME_SUFFIXES + PICTURE_SUFFIXES):
        source.put(found, LABEL_ENDING.sub("", id_of(path.relative_to(folder))), path)
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
) -> Listing:
    """The listing with unique ids, and the user's subjects, modalities and classes.

    Raises:
      UserError: an empty source, or an option that does not apply.
    """
    cases = (case for case in cases if source.ambiguous.isdisjoint(case.files))
    kept = _without_duplicates(source, cases)
    if options.subject_pattern:
        kept, splits_by = _with_subjects(source, kept, options.subject_pattern), "subject"
    if not kept and not source.problems:
        raise UserError(f"{source.folder}: no cases found; is --layout the right one?")
    classes = options.classes or classes
    for value, class_name in (classes or {}).items():
        if not 0 <= value <= LARGEST_LABEL:
            raise UserError(
                f"{source.folder}: the class {class_name!r} has the label value {value}, which is "
                f"outside 0 to {LARGEST_LABEL}"
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
    )


def _without_duplicates(source: Source, cases: Iterable[SourceCase]) -> list[SourceCase]:
    """The cases with a unique id, sorted; letter case is ignored, as some file systems do."""
    by_id: dict[str, list[SourceCase]] = {}
    for case in cases:
        by_id.setdefault(case.id.lower(), []).append(case)
    kept = []
    for same in by_id.values():
        if len(same) == 1:
            kept.append(same[0])
        else:
            files = ", ".join(sorted(source.relative(case.files[0]) for case in same))
            source.problem(same[0].id, f"duplicate id of {len(same)} cases ({files}); rename them")
    return sorted(kept, key=lambda case: case.id)


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
