"""Prepares a collection of images for training: reads, checks, crops, resamples, normalises.

    python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus --output=data/hippocampus
    python -m ssl3d.prepare --layout=dicom --source=SCANS --output=OUT --recipe=ct --dry-run

docs/data.md describes the layouts, the recipes and the prepared format. Run the command again
after an interruption; it resumes with the missing cases.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d.cli import Parser, run
from ssl3d.data.preparation.collection import prepare
from ssl3d.data.preparation.options import PreparationOptions, add_options
from ssl3d.errors import UserError


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m ssl3d.prepare", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments, namespace=PreparationOptions())
    try:
        prepare(options)
    except OSError as error:
        where = error.filename or options.output
        # NumPy's error on a full disk has no strerror, only how many bytes were written.
        reason = error.strerror or f"{error}, is the disk full?"
        raise UserError(f"{where}: {reason}; fix this and run again") from None


if __name__ == "__main__":
    run(main)
