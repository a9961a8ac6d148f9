"""Pictures of cases: label maps on their images, and confusions of grades.

All of them show the prepared arrays: upright, and with the intensities the network sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ssl3d.figures import slices

# Line width, style and opacity: a wide pale reference shows beneath the broken prediction where
# they agree.
_REFERENCE: tuple[float, Any, float] = (3.0, "solid", 0.5)
_PREDICTION: tuple[float, Any, float] = (1.4, (0, (2.5, 1.2)), 1.0)
_SIDE = 4.0  # inches, the longest side of a slice
_CAPTION = 1.1  # inches, title and legend together
_MOST_NAMED = 12  # classes in a legend
MOST_MISTAKES = 12
_COLUMNS = 4


class _View(NamedTuple):
    """A slice: the axis it cuts (None in 2D), image [H, W, C] and label maps [H, W], mm [2]."""

    cut: int | None
    image: np.ndarray
    labels: list[np.ndarray]
    extent: tuple[float, float]


def outlines(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    title: str,
    classes: Sequence[str] = (),
) -> Figure:
    """Slices through the middle of the labels, every class of both label maps outlined.

    Args:
      image: [*S, C], e.g. a memory map: only the slices are read.
      truth: int [*S].
      prediction: int [*S].
      spacing: mm, for true proportions.
      classes: names of the label values, for the legend.
    """

    def draw(axes: Axes, view: _View, colour: bool) -> None:
        for labels, line in zip(view.labels, (_REFERENCE, _PREDICTION), strict=True):
            slices.outline(axes, labels, colour, *line)

    lines = [
        Line2D([], [], color="0.2", linewidth=width, linestyle=style, alpha=opacity)
        for width, style, opacity in (_REFERENCE, _PREDICTION)
    ]
    return _figure(
        image,
        [truth, prediction],
        spacing,
        title,
        classes,
        draw,
        dict(zip(("reference", "prediction"), lines, strict=True)),
    )


def preview(
    image: np.ndarray, labels: np.ndarray, classes: Sequence[str], spacing: Sequence[float],
    title: str,
) -> Figure:  # fmt: skip
    """Slices through the middle of a label map int [*S], laid over the image [*S, C]."""

    def draw(axes: Axes, view: _View, colour: bool) -> None:
        slices.overlay(axes, view.labels[0], colour)

    return _figure(image, [labels], spacing, title, classes, draw, {})


def _figure(
    image: np.ndarray,
    labels: Sequence[np.ndarray],
    spacing: Sequence[float],
    title: str,
    classes: Sequence[str],
    draw: Callable[[Axes, _View, bool], None],
    lines: Mapping[str, Line2D],
) -> Figure:
    """The slices side by side, at one scale, with a legend of the classes that they show."""
    colour = slices.is_photograph(image)
    views = _views(image, labels, spacing, colour)
    limits = slices.window(np.concatenate([v.image.reshape(-1, image.shape[-1]) for v in views]))
    inches = _SIDE / max(side for view in views for side in view.extent)
    widths = [inches * view.extent[0] for view in views]
    height = inches * max(view.extent[1] for view in views)
    figure = Figure((max(sum(widths), _SIDE), height + _CAPTION), layout="constrained")
    places = np.atleast_1d(figure.subplots(1, len(views), width_ratios=widths))
    for axes, view in zip(places, views, strict=True):
        slices.show(axes, view.image, colour, limits)
        axes.autoscale(False)
        draw(axes, view, colour)
        height_and_width = view.labels[0].shape if colour else view.labels[0].shape[::-1]
        axes.set_aspect(
            view.extent[1] / height_and_width[0] / (view.extent[0] / height_and_width[1])
        )
        if view.cut is not None:
            slices.annotate(axes, view.cut, spacing, height_and_width[1])
    figure.suptitle(title, fontsize=9)
    shown = np.unique(np.concatenate([part.ravel() for view in views for part in view.labels]))
    handles: dict[str, Any] = {
        classes[index] if index < len(classes) else f"class {index}": Patch(
            facecolor=slices.colour_of(index), edgecolor="0.35", linewidth=0.5
        )
        for index in shown[shown > 0].tolist()[:_MOST_NAMED]
    }
    handles |= lines
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center",
            ncols=min(len(handles), 6), fontsize=8, handlelength=2.8,
        )  # fmt: skip
    return figure


def _views(
    image: np.ndarray, labels: Sequence[np.ndarray], spacing: Sequence[float], colour: bool
) -> list[_View]:
    middle = _middle(next((part for part in labels if part.any()), labels[0]))
    rank = labels[0].ndim
    views = []
    for cut in (None,) if rank == 2 else (2, 1, 0):
        shown = [axis for axis in range(rank) if axis != cut]
        across, up = reversed(shown) if colour else shown
        picture, *parts = (
            array if cut is None else np.take(array, middle[cut], axis=cut)
            for array in (image, *labels)
        )
        extent = (labels[0].shape[across] * spacing[across], labels[0].shape[up] * spacing[up])
        views.append(_View(cut, picture, parts, extent))
    return views


def _middle(label: np.ndarray) -> list[int]:
    """The median labelled voxel [r]: unlike the mean it lies in a labelled slice."""
    middle = []
    for axis, side in enumerate(label.shape):
        others = tuple(other for other in range(label.ndim) if other != axis)
        counts = np.count_nonzero(label, axis=others)
        half = counts.cumsum() * 2 >= max(counts.sum(), 1)
        middle.append(int(half.argmax()) if counts.any() else side // 2)
    return middle


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
