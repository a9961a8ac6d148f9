"""Predicts new images with a trained network: label maps of scans, or a table of grades.

    python -m ssl3d.predict --workdir=RUN [--workdir=RUN2 ...] --input=DIR_OR_FILE --output=DIR

Files are prepared like the training data. The probabilities of several runs are averaged.

Segmentation   OUTPUT/CASE.nii.gz (.png; .dcm with --format=dicom-seg), on the grid of the input;
               dataset.json, volumes.csv (ml by class), previews/, probabilities/
Classification OUTPUT/predictions.csv: id, file, grade, class, the probability of each class.

From Python: ssl3d.predict.predict(array, spacing, workdir).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl3d import cli
from ssl3d.data.layouts import LAYOUTS
from ssl3d.downstream.options import add_options


def parser() -> cli.Parser:
    """The command's options."""
    result = cli.Parser(prog="python -m ssl3d.predict", description=__doc__)
    add = result.add_argument
    add("--workdir", required=True, type=cli.path, action="append", help="folder of a run")
    add("--input", required=True, type=cli.path, help="a file, or a folder of images")
    add("--output", required=True, type=cli.path, help="folder for the predictions")
    add("--layout", choices=sorted(LAYOUTS), help="default: the training data's, or any files")
    add("--format", choices=("nifti", "dicom-seg"), default="nifti", help="of the label maps")
    add("--probabilities", action="store_true", help="segmentation: write these too")
    add("--no-pictures", dest="pictures", action="store_false", help="no previews")
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip: leave out bad files")
    add_options(result)
    return result


def __getattr__(name: str) -> Any:
    """`predict`, see `ssl3d.downstream.predict_arrays`; with JAX, which --help does without."""
    if name == "predict":
        from ssl3d.downstream.predict_arrays import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(arguments: Sequence[str]) -> None:
    """Runs the command. Raises `UserError`."""
    options = parser().parse_args(arguments)
    from ssl3d.downstream import predict_files  # JAX, which --help does without

    with cli.disk_errors(options.output):
        print(predict_files.predict(**vars(options)))


if __name__ == "__main__":
    cli.run(main)
