"""Progress of a preparation on disk, from which an interrupted run resumes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import IO

from ssl3d import documents
from ssl3d.atomic import atomic_write
from ssl3d.data import readers, store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation.case import PreparationSettings
from ssl3d.data.preparation.workers import Workers, in_parallel
from ssl3d.errors import UserError

# One line per finished case; deleted once the manifest is written.
PROGRESS = "progress.jsonl"
REMEDY = "delete the output folder and prepare the data again"


@dataclasses.dataclass(frozen=True)
class Known:
    """A case of an earlier run.

    Attributes:
      case: as in the manifest.
      stamps: size and modification time of its source files; None where only checksums can tell
        whether these have changed.
    """

    case: store.Case
    stamps: list[list[int]] | None


def known_cases(settings: PreparationSettings) -> dict[str, Known]:
    """The cases of an earlier run into the same folder, finished or interrupted.

    Raises:
      UserError: the folder holds other files, or data prepared with other settings.
    """
    output = settings.output
    progress, manifest = output / PROGRESS, output / store.MANIFEST
    known: dict[str, Known] = {}
    if manifest.exists():
        dataset = store.read(output)
        _check_settings(settings, dataset.extra.get("settings"))
        known = {case.id: Known(case, None) for case in dataset.cases}
    if progress.exists():
        lines = documents.read_lines(progress, REMEDY)
        _check_settings(settings, lines[0].get("settings") if lines else None)
        with documents.fields(progress, REMEDY):
            for line in lines[1:]:
                case = store.case_from(line["case"])
                known[case.id] = Known(case, line["stamps"])
    if not known and not progress.exists() and output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; choose a new folder for --output")
    return known


def unchanged_cases(
    cases: Sequence[SourceCase],
    known: dict[str, Known],
    settings: PreparationSettings,
    workers: Workers,
) -> dict[str, Known]:
    """The known cases with intact arrays and unchanged source files."""
    cases = [case for case in cases if case.id in known]
    if not cases:
        return {}
    unchanged = {}
    calls = [(case, settings, known[case.id]) for case in cases]
    for index, valid in in_parallel(_is_unchanged, calls, workers, "checking"):
        case = cases[index]
        if valid is True:
            entry = dataclasses.replace(known[case.id].case, subject=case.subject, grade=case.grade)
            unchanged[case.id] = Known(entry, _stamps(case))
    return unchanged


def start(settings: PreparationSettings, finished: Sequence[Known]) -> None:
    """Writes the file anew, without a line that a crash truncated."""
    lines = [_line(entry) for entry in finished]
    with atomic_write(settings.output / PROGRESS) as partial:
        partial.write_text(json.dumps({"settings": settings.document()}) + "\n" + "".join(lines))


def append(file: IO[str], source: SourceCase, case: store.Case) -> None:
    """Records a finished case."""
    file.write(_line(Known(case, _stamps(source))))
    file.flush()


def _is_unchanged(case: SourceCase, settings: PreparationSettings, known: Known) -> bool:
    """Whether preparing the case again would change nothing. Raises `UserError`: bad arrays."""
    if known.case.labelled != (case.label is not None) or not known.case.files:
        return False
    rank, modalities = settings.recipe.rank, settings.modalities
    dataset = store.Dataset(settings.output, "", rank, modalities, (), "", ())
    store.load_image(dataset, known.case)
    if known.case.labelled:
        store.load_label(dataset, known.case)
    if known.stamps == _stamps(case):
        return True
    return readers.checksum(case.files) == known.case.extra["checksum"]


def _stamps(case: SourceCase) -> list[list[int]]:
    """Size and modification time of each of the case's files."""
    return [[path.stat().st_size, path.stat().st_mtime_ns] for path in case.files]


def _line(entry: Known) -> str:
    return json.dumps({"case": dataclasses.asdict(entry.case), "stamps": entry.stamps}) + "\n"


def _check_settings(settings: PreparationSettings, found: object) -> None:
    if found != settings.document():
        raise UserError(
            f"{settings.output}: holds data prepared with other settings; choose another --output, "
            "or delete it first"
        )
