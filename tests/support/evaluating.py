"""What the tests of an evaluation share: the command's files, and scores by hand."""

import csv
import json

import matplotlib.image
import numpy as np

from ssl3d import evaluate

# The grid of the scans: voxel axes along S, R, A, two of them reversed, and of three lengths.
AFFINE = np.array(
    [
        [0, -1.0, 0, 12],
        [0, 0, 1.5, -7],
        [-2.0, 0, 0, 31],
        [0, 0, 0, 1],
    ]
)

SHAPE = (19, 30, 24)


def run(workdir, *options):
    """Evaluates; the rows of the table and the summary."""
    evaluate.main([f"--workdir={workdir}", *options])
    return read(workdir / "evaluation")


def read(folder):
    """The rows of the table and the summary in a folder."""
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "summary.json").read_text())


def dice(prediction, truth, index):
    """By definition."""
    sizes = (prediction == index).sum() + (truth == index).sum()
    return 2 * ((prediction == index) & (truth == index)).sum() / sizes


def assert_pictures(folder, *names):
    """The folder holds these pictures and no others, and none is blank."""
    assert {path.name for path in folder.glob("*.png")} == set(names)
    for name in names:
        assert matplotlib.image.imread(folder / name)[..., :3].std() > 0.05
