"""A source folder: its files, links and formats, and the problems found in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from ssl3d.data.readers import UNREADABLE, suffix
from ssl3d.errors import UserError

K = TypeVar("K")


@dataclasses.dataclass(frozen=True)
class Problem:
    """The name of a case, file or folder, and what is wrong with it in one line."""

    name: str
    reason: str


class ListingError(UserError):
    """A fault of the whole source, with what was found in its files before."""

    def __init__(self, message: str, problems: Sequence[Problem], notes: Sequence[Problem]) -> None:
        super().__init__(message)
        self.problems, self.notes = tuple(problems), tuple(notes)


class Source:
    """A source folder and the problems found in it so far."""

    def __init__(self, folder: Path, follow_links: bool = True) -> None:
        self.folder = folder
        self.follow_links = follow_links
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
        """Records a remark, once."""
        note = Problem(str(name), reason)
        if note not in self.notes:
            self.notes.append(note)

    def refuse(self, message: str) -> NoReturn:
        """Raises the error about the whole source, with the problems found so far."""
        raise ListingError(f"{self.folder}: {message}", self.problems, self.notes)

    def holding(self, folder: Path) -> Source:
        """This source if `folder` lies inside it, else a new one that shares the problems."""
        if folder.is_relative_to(self.folder):
            return self
        other = Source(folder, self.follow_links)
        other.problems, other.notes, other.ambiguous = self.problems, self.notes, self.ambiguous
        return other

    def inside(self, path: Path) -> bool:
        """Whether the path exists inside the source; if not, a problem.

        Links may lead anywhere, unless the user says no: whoever puts a data set together from
        links means their targets. A path that a file of the source names may not.
        """
        reason = self._why_unusable(path)
        if reason:
            self.problem(path, reason)
        return reason is None

    def _why_unusable(self, path: Path) -> str | None:
        if not Path(os.path.normpath(path)).is_relative_to(self.folder):
            return "leaves the source folder; copy the file into it"
        if not self.follow_links and not self._resolved(path).is_relative_to(self.root):
            return "a link that leaves the source folder; add --follow-links, or copy the file"
        if os.path.isfile(path) or os.path.isdir(path):
            return None
        if os.path.exists(path):  # a pipe: reading it would block forever
            return "not a file; remove it"
        what = "a broken link" if os.path.islink(path) else "no such file"
        return f"{what}; restore the file"

    def _resolved(self, path: Path) -> Path:
        try:
            return path.resolve()
        except (OSError, RuntimeError, ValueError):  # a link to itself, a NUL in the name
            return path

    def put(self, found: dict[K, Path], key: K, path: Path) -> None:
        """Sets `found[key]`; a second file for a key is a problem and excludes the case."""
        if key in found:
            self.problem(path, f"a duplicate of {found[key].name}; keep one of them")
            self.ambiguous.add(found[key])
        found.setdefault(key, path)

    def files(self, folder: Path, suffixes: Sequence[str] | None = None) -> Iterator[Path]:
        """All files below `folder`, sorted, without hidden ones; links are followed.

        Images of formats that no reader knows are noted.

        Args:
          folder: the root of the search.
          suffixes: of the files wanted (see `readers.suffix`); None for all files.
        """
        seen: set[Path] = set()
        for root, folders, names in os.walk(folder, onerror=self._unreadable, followlinks=True):
            visible = (Path(root, name) for name in sorted(folders) if not name.startswith("."))
            folders[:] = [path.name for path in visible if self._enters(path, seen)]
            for name in sorted(names):
                path = Path(root, name)
                # macOS adds a "._" file beside every file of an archive.
                if name.startswith("."):
                    continue
                if suffixes and suffix(path) not in suffixes:
                    self._note_unreadable(path)
                elif self.inside(path):
                    yield path

    def _note_unreadable(self, path: Path) -> None:
        name = path.name.lower()
        ending = next((ending for ending in UNREADABLE if name.endswith(ending)), None)
        if ending:
            self.note(path, f"left out: {UNREADABLE[ending]}; convert it to NIfTI")
        elif path.suffix.lower() == ".img" and not any(
            path.with_suffix(end).exists() for end in (".hdr", ".HDR")
        ):
            self.note(path, f"left out: its header, {path.stem}.hdr, is missing")

    def _enters(self, path: Path, seen: set[Path]) -> bool:
        """Whether to look into a folder: any, or a link that leads out of the source, once."""
        if not path.is_symlink():
            return True
        if not self.inside(path):
            return False
        target = path.resolve()
        # The files of a linked folder inside the source are found under their own path.
        if target in seen or target.is_relative_to(self.root) or self.root.is_relative_to(target):
            return False
        seen.add(target)
        return True

    def _unreadable(self, error: OSError) -> None:
        self.problem(error.filename, f"cannot be read ({error.strerror})")

    def relative(self, path: Path) -> str:
        """The path below the source, for names and messages."""
        return path.relative_to(self.folder).as_posix()
