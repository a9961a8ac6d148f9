"""Pictures of an evaluation: label maps outlined on single cases, and confusions of grades.

All of them show the prepared arrays: upright, and with the intensities the network sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssl3d.figures import slices

# The truth, and the thinner prediction above it: distinct for the colour-blind, and both visible
# where they agree. Colours and widths.
_LINES = (("#ffb000", 2.4), ("#0090ff", 1.2))
_SIDE = 4.0  # inches, the longest side of a slice
_CAPTION = 0.8  # inches, title and legend together
MOST_MISTAKES = 12
_COLUMNS = 4


def outlines(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    title: str,
) -> Figure:
    """Slices through the middle of the labels, every class of both label maps outlined.

    Args:
      image: [*S, C], e.g. a memory map: only the slices are read.
      truth: int [*S].
      prediction: int [*S].
      spacing: mm, for true proportions.
    """
    colour = slices.is_photograph(image)
    middle = _middle(truth if truth.any() else prediction)
    cuts = (None,) if truth.ndim == 2 else (2, 1, 0)
    views = []
    for cut in cuts:
        axes = [axis for axis in range(truth.ndim) if axis != cut]
        across, up = reversed(axes) if colour else axes
        planes = [
            array if cut is None else np.take(array, middle[cut], axis=cut)
            for array in (image, truth, prediction)
        ]
        extent = [truth.shape[axis] * spacing[axis] for axis in (across, up)]
        views.append((planes, extent, spacing[up] / spacing[across]))
    shown = [planes[0].reshape(-1, image.shape[-1]) for planes, *_ in views]
    limits = slices.window(np.concatenate(shown))

    inches = _SIDE / max(side for _, extent, _ in views for side in extent)
    widths = [inches * extent[0] for _, extent, _ in views]
    height = inches * max(extent[1] for _, extent, _ in views)
    figure = Figure((max(sum(widths), _SIDE), height + _CAPTION), layout="constrained")
    places = np.atleast_1d(figure.subplots(1, len(views), width_ratios=widths))
    for place, (planes, _, aspect) in zip(places, views, strict=True):
        slices.show(place, planes[0], colour, limits)
        place.autoscale(False)
        for labels, line in zip(planes[1:], _LINES, strict=True):
            _outline(place, labels if colour else labels.T, *line)
        place.set_aspect(aspect)
    figure.suptitle(title, fontsize=9)
    handles = [Line2D([], [], color=colour, linewidth=width) for colour, width in _LINES]
    figure.legend(handles, ("truth", "prediction"), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _middle(label: np.ndarray) -> list[int]:
    """The median labelled voxel [r]: unlike the mean it lies in a labelled slice."""
    middle = []
    for axis, side in enumerate(label.shape):
        others = tuple(other for other in range(label.ndim) if other != axis)
        counts = np.count_nonzero(label, axis=others)
        half = counts.cumsum() * 2 >= max(counts.sum(), 1)
        middle.append(int(half.argmax()) if counts.any() else side // 2)
    return middle


def _outline(axes: Axes, labels: np.ndarray, colour: str, width: float) -> None:
    for index in np.unique(labels[labels > 0]):
        # Padded, so that the outline closes where the class touches the slice's edge.
        mask = np.pad(labels == index, 1)
        positions = [np.arange(side) - 1 for side in mask.shape]
        axes.contour(
            positions[1], positions[0], mask.astype(float), [0.5], colors=colour, linewidths=width
        )


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Cases of each true grade (row) by predicted grade (column), shaded by the row's shares."""
    matrix = np.asarray(counts)
    side = 1.6 + 0.8 * len(classes)
    figure = Figure((side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        ink = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(picture, label="share of the true grade", shrink=0.8)
    return figure


def mistakes(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, np.ndarray], classes: Sequence[str]
) -> Figure:
    """A contact sheet of misclassified cases: the picture, or the middle slice of a volume.

    Args:
      rows: from `worst_mistakes`, at least one.
      images: id -> [*S, C].
    """
    count = math.ceil(len(rows) / _COLUMNS)
    figure = Figure((_COLUMNS * 2.4, count * 2.8), layout="constrained")
    places = figure.subplots(count, _COLUMNS, squeeze=False).ravel()
    for place in places[len(rows) :]:
        place.axis("off")
    for place, row in zip(places, rows, strict=False):
        image = images[row["id"]]
        _, _, view = slices.middle_views(image)[0]
        slices.show(place, view, slices.is_photograph(image), slices.window(view))
        lines = [
            f"{what}: {classes[row[key]]} ({row['probability'][row[key]]:.2f})"
            for what, key in (("true", "grade"), ("predicted", "predicted"))
        ]
        place.set_title("\n".join([row["id"], *lines]), fontsize=7)
    return figure


def worst_mistakes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Misclassified cases, largest error in grades first, then the lowest true probability."""
    wrong = [row for row in rows if row["predicted"] != row["grade"]]
    wrong.sort(
        key=lambda row: (
            -abs(row["predicted"] - row["grade"]),
            float(row["probability"][row["grade"]]),
        )
    )
    return wrong[:MOST_MISTAKES]
