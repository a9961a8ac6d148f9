"""What a layout hands over: the cases of a source folder, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl3d.data.readers import stem, suffix
from ssl3d.data.readers.checks import LARGEST_LABEL
from ssl3d.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceCase:
    """One case as it lies on disk.

    Attributes:
      id: unique name within the data set.
      subject: whose image it is.
      images: per modality the files that hold it: one, or all files of a DICOM series.
      label: label map, or None.
      mask: everything outside it is background (brain masks), or None.
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
    """Something wrong: the name of a case, file or folder, and what about it, in one line."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a layout found.

    Attributes:
      name: of the collection.
      rank: 3 for volumes, 2 for pictures.
      cases: in any order.
      modalities: names of the channels, None where only the files tell how many there are.
      classes: label value (or grade) -> name, 0 is the background; several values may share a
        name and become one class. None where only the labels tell.
      splits_by: "subject", or "case" where the source has no subject ids.
      problems: what cannot be used.
      notes: what somebody should know, though it can be used.
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
    """What the command line can tell a layout.

    Attributes:
      labels: folder of label files beside the images (`folder`, `dicom`, `bids`).
      csv: file of grades (`images`).
      modalities: names, in the order of the channels.
      classes: label value (or grade) -> name.
      subject_pattern: regular expression whose first group, found in a case id, is the subject.
    """

    labels: Path | None = None
    csv: Path | None = None
    modalities: tuple[str, ...] | None = None
    classes: dict[int, str] | None = None
    subject_pattern: str | None = None


class Source:
    """A folder to list, which remembers the problems met on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.ambiguous: set[Path] = set()

    def problem(self, name: object, reason: str) -> None:
        """Remembers what cannot be used; the same file met twice is one problem."""
        problem = Problem(str(name), reason)
        if problem not in self.problems:
            self.problems.append(problem)

    def note(self, name: object, reason: str) -> None:
        """Remembers what somebody should know."""
        self.notes.append(Problem(str(name), reason))

    def holding(self, folder: Path) -> Source:
        """This source for a folder inside it, else one of its own that shares the problems."""
        if folder.is_relative_to(self.folder):
            return self
        other = Source(folder)
        other.problems, other.ambiguous = self.problems, self.ambiguous
        return other

    def inside(self, path: Path) -> bool:
        """Whether the path stays in the source once its links are followed; else a problem."""
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
        if os.path.exists(path):  # a pipe: reading it would wait for ever
            return "not a file; take it out"
        what = "a link to nothing" if os.path.islink(path) else "no such file"
        return f"{what}; restore the file"

    def put(self, found: dict[Any, Path], key: Any, path: Path) -> None:
        """Sets `found[key]`; where two files are for one key, their case cannot be used."""
        if key in found:
            self.problem(path, f"the same thing as {found[key].name}; keep one of them")
            self.ambiguous.add(found[key])
        found.setdefault(key, path)

    def files(self, folder: Path, suffixes: Sequence[str] | None = None) -> Iterator[Path]:
        """All files below `folder`, sorted, hidden ones left out, links checked.

        Args:
          folder: where to look.
          suffixes: only files with one of these (see `readers.suffix`); None for all.
        """
        for root, folders, names in os.walk(folder, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                path = Path(root, name)
                # A linked folder inside the source is met under its own name.
                if path.is_symlink():
                    self.inside(path)
            for name in sorted(names):
                path = Path(root, name)
                # Names in "._" are left behind by macOS next to every file of an archive.
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
    """Label value (or grade) -> class, numbered as in `class_names`."""
    names = class_names(values)
    return {value: names.index(name) for value, name in (values or {}).items()}


def class_names(values: dict[int, str] | None) -> tuple[str, ...]:
    """The classes in the order of their smallest label value; values of one name are one class."""
    return tuple(dict.fromkeys((values or {})[value] for value in sorted(values or {})))


def id_of(relative: str | Path) -> str:
    """A case id from a path below the source: separators become `-`, odd characters `_`."""
    path = Path(relative)
    parts = [*path.parent.parts, stem(path)]
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", "-".join(parts))
    return name.lstrip("._+-") or "case"


def finish(
    source: Source, options: Options, *, cases: Iterable[SourceCase], splits_by: str, **fields: Any
) -> Listing:
    """The listing: ids unique, subjects and classes as the user wants them.

    Raises:
      UserError: nothing found at all, or an option that makes no sense.
    """
    cases = (case for case in cases if source.ambiguous.isdisjoint(case.files))
    kept = _without_duplicates(source, cases)
    if options.subject_pattern:
        kept, splits_by = _with_subjects(source, kept, options.subject_pattern), "subject"
    if not kept and not source.problems:
        raise UserError(f"{source.folder}: no cases found; is --layout the right one?")
    if options.classes:
        fields["classes"] = options.classes
    for value, name in (fields["classes"] or {}).items():
        if not 0 <= value <= LARGEST_LABEL:
            raise UserError(
                f"{source.folder}: the class {name!r} has the label value {value}, which is "
                f"outside 0 to {LARGEST_LABEL}"
            )
    if options.modalities:
        fields["modalities"] = options.modalities
    return Listing(
        cases=tuple(kept),
        splits_by=splits_by,
        problems=tuple(source.problems),
        notes=tuple(source.notes),
        **fields,
    )


def _without_duplicates(source: Source, cases: Iterable[SourceCase]) -> list[SourceCase]:
    """The cases whose id occurs once (letter case ignored, as some file systems do), sorted."""
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
    """Subjects from the ids by a regular expression; ids it does not fit are problems."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern: not a regular expression ({error})") from None
    if not expression.groups:
        raise UserError("--subject-pattern: put the part that names the subject in parentheses")
    kept = []
    for case in cases:
        match = expression.search(case.id)
        if match and match[1]:
            kept.append(dataclasses.replace(case, subject=match[1]))
        else:
            source.problem(case.id, f"the id does not fit --subject-pattern={pattern}")
    return kept
