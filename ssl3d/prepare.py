"""Prepares a collection of images for training: reads, checks, crops, resamples, normalises.

    python -m ssl3d.prepare --source=Task04_Hippocampus --output=data/hippocampus
    python -m ssl3d.prepare --layout=dicom --source=SCANS --output=OUT --recipe=ct --dry-run

Without --layout, it is recognised and printed. docs/data.md describes the layouts, the recipes and
the prepared format. Run the command again after an interruption; it resumes with the missing cases.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d.cli import Parser, disk_errors, run
from ssl3d.data.preparation.collection import prepare
from ssl3d.data.preparation.options import PreparationOptions, add_options


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m ssl3d.prepare", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments, namespace=PreparationOptions())
    with disk_errors(options.output):
        prepare(options)


if __name__ == "__main__":
    run(main)
