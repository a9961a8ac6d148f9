"""Scores of a trained network on held-out cases, per case and summarised, with pictures.

    python -m ssl3d.evaluate --workdir=DIR [--split=test] [--model=best|last] [--data=DIR]
                             [--source=DIR] [--output=DIR] [--no-pictures]

Writes cases.csv and summary.json; for a segmentation best.png, median.png and worst.png; for a
classification confusion.png and, if there are mistakes, mistakes.png.

Segmentations are scored on the grid of the source's images: with --source, the folder given to
ssl3d.prepare, against the labels in its files; without it against the prepared labels where these
were not resampled, and otherwise on the prepared grid.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli
from ssl3d.data.cases import LABELLED_SPLITS
from ssl3d.downstream.options import add_options


def parser() -> cli.Parser:
    """The command's options."""
    result = cli.Parser(prog="python -m ssl3d.evaluate", description=__doc__)
    add = result.add_argument
    add("--workdir", required=True, type=cli.path, help="folder of the run")
    add("--split", default="test", choices=LABELLED_SPLITS, help="cases (default: test)")
    add("--data", type=cli.path, help="prepared data set (default: where the run had it)")
    add("--source", type=cli.path, help="folder the data set was prepared from")
    add("--output", type=cli.path, help="folder for the scores (default: WORKDIR/evaluation)")
    add(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="tables only, e.g. for a grid of many runs",
    )
    add_options(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    from ssl3d.downstream import evaluate_split  # JAX, which --help does without

    options.output = options.output or options.workdir / "evaluation"
    with cli.disk_errors(options.output):
        print(evaluate_split.evaluate(**vars(options)))


if __name__ == "__main__":
    cli.run(main)
