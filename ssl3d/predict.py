"""Predicts new images with a trained network: label maps of scans, or a table of grades.

    python -m ssl3d.predict --workdir=RUN --input=DIR_OR_FILE --output=DIR [--on-error=skip] [...]

Files are found, read, checked and prepared like the training data.

Segmentation   OUTPUT/CASE.nii.gz: a label map on the grid of the input, with the label values of
               the training labels and the header of a NIfTI input. For pictures, CASE.png.
               --probabilities adds OUTPUT/probabilities/CASE.nii.gz, float32, one volume per
               class; for pictures CASE.tif, one page per class.
Classification OUTPUT/predictions.csv: id, file, grade, class, the probability of each class.

Every file is written atomically. A second run predicts everything again and replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssl3d import cli
from ssl3d.data.layouts import LAYOUTS
from ssl3d.downstream.options import add_options


def parser() -> cli.Parser:
    """The command's options."""
    result = cli.Parser(prog="python -m ssl3d.predict", description=__doc__)
    add = result.add_argument
    add(
        "--workdir",
        required=True,
        type=cli.path,
        help="folder of the segmentation or classification",
    )
    add("--input", required=True, type=cli.path, help="a file, or a folder of images")
    add("--output", required=True, type=cli.path, help="folder for the predictions")
    add(
        "--layout",
        choices=sorted(LAYOUTS),
        help="arrangement of the files (default: that of the training data if the folder has it, "
        "else every image below the folder is a case; CASE_0000, CASE_0001 are its channels)",
    )
    add("--probabilities", action="store_true", help="segmentation: write these too")
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip: leave out bad files")
    add_options(result)
    return result


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    from ssl3d.downstream import predict_files  # JAX, which --help does without

    with cli.disk_errors(options.output):
        print(predict_files.predict(**vars(options)))


if __name__ == "__main__":
    cli.run(main)
