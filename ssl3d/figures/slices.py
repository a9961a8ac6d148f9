"""Slices of images as a viewer shows them: upright, windowed, with names, letters and scale.

Slices of volumes follow the radiological convention: anterior or superior is up, the patient's
right (in sagittal slices: the front) on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import AbstractPathEffect, withStroke

from ssl3d.data import intensity

# By the axis that is cut, [R, A, S].
PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}
# The sides that an axis runs from and to.
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
# Bright, distinct for the colour-blind where they are few (Okabe & Ito 2008), legible on black.
COLOURS = (
    "#ffb000", "#56b4e9", "#00d18b", "#ff6db6", "#f0e442", "#ff7043", "#b497ff", "#9be564",
    "#00e5e5", "#e0b090",
)  # fmt: skip
# mm
_BARS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
# Share of the width that a scale bar takes at most.
_WIDEST_BAR = 0.35


def colour_of(number: int) -> str:
    """The colour of the class (or box) of a number from 1 on; they repeat."""
    return COLOURS[(number - 1) % len(COLOURS)]


def outlined(width: float = 2.0) -> list[AbstractPathEffect]:
    """A black edge around text and lines, in points: legible on any grey."""
    return [withStroke(linewidth=width, foreground="black")]


def middle_views(image: np.ndarray) -> list[tuple[tuple[int, int], int | None, np.ndarray]]:
    """The middle slices of an image [*S, C] as (axes shown, axis cut, [H, W, C]).

    One view in 2D, three orthogonal ones in 3D (axial, coronal, sagittal).
    """
    if image.ndim == 3:
        return [((0, 1), None, image)]
    return [
        (shown, cut, np.take(image, image.shape[cut] // 2, axis=cut))
        for cut, shown in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2)))
    ]


def is_photograph(image: np.ndarray) -> bool:
    """Whether [*S, C] is an RGB picture, to be shown in colour, rows from top to bottom."""
    return image.ndim == 3 and image.shape[-1] == 3


def window(image: np.ndarray) -> np.ndarray:
    """The display window of an image in float32: [..., C] -> [2, C]."""
    return intensity.display_window(np.asarray(image, np.float32))


def show(axes: Axes, view: np.ndarray, colour: bool, limits: np.ndarray) -> None:
    """Shows a view [H, W, C] in colour (rows from top to bottom), or its first channel in grey.

    Args:
      limits: [2, C], the values shown as black and as white, e.g. of `window`.
    """
    low, high = limits
    view = np.clip((view.astype(np.float32) - low) / np.maximum(high - low, 1e-6), 0, 1)
    if colour:
        axes.imshow(view, interpolation="nearest")
    else:
        axes.imshow(view[..., 0].T, cmap="gray", vmin=0, vmax=1, origin="lower")
        axes.invert_xaxis()
    axes.set_xticks([])
    axes.set_yticks([])


def overlay(axes: Axes, labels: np.ndarray, colour: bool, opacity: float = 0.4) -> None:
    """Fills and outlines the classes of a view [H, W] over the image that `show` put there."""
    plane = labels if colour else labels.T
    filled = np.zeros((*plane.shape, 4), np.float32)
    for index in np.unique(plane[plane > 0]):
        rgb = [int(colour_of(int(index))[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        filled[plane == index] = (*rgb, opacity)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(filled, origin="upper" if colour else "lower", interpolation="nearest")
    axes.set(xlim=limits[0], ylim=limits[1])
    outline(axes, labels, colour, width=0.8)


def outline(
    axes: Axes,
    labels: np.ndarray,
    colour: bool,
    width: float,
    style: Any = "solid",
    opacity: float = 1.0,
) -> None:
    """Outlines the classes of a view [H, W] in their colours.

    Args:
      width: points.
      style: of Matplotlib's lines.
    """
    plane = labels if colour else labels.T
    for index in np.unique(plane[plane > 0]):
        # Padded, so that the outline closes where the class touches the slice's edge.
        mask = np.pad(plane == index, 1)
        positions = [np.arange(side) - 1 for side in mask.shape]
        axes.contour(
            positions[1], positions[0], mask.astype(float), [0.5],
            colors=colour_of(int(index)), linewidths=width, linestyles=[style],
            alpha=opacity,
        )  # fmt: skip


def annotate(axes: Axes, cut: int, spacing: Sequence[float], width: int) -> None:
    """Names the plane of a volume's slice, letters its sides, and adds a scale bar.

    Args:
      cut: the axis that the slice cuts.
      spacing: mm along the three axes.
      width: voxels across the slice.
    """
    across, up = (axis for axis in range(3) if axis != cut)
    axes.set_title(PLANES[cut], fontsize=8, pad=3)
    for x, y, letter, horizontal, vertical in (
        (0.015, 0.5, _LETTERS[across][1], "left", "center"),
        (0.985, 0.5, _LETTERS[across][0], "right", "center"),
        (0.5, 0.985, _LETTERS[up][1], "center", "top"),
        (0.5, 0.015, _LETTERS[up][0], "center", "bottom"),
    ):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical,
            color="white", fontsize=8, path_effects=outlined(),
        )  # fmt: skip
    extent = width * spacing[across]
    length = max((bar for bar in _BARS if bar <= _WIDEST_BAR * extent), default=_BARS[0])
    end = 0.05 + length / extent
    axes.plot(
        [0.05, end], [0.05, 0.05], transform=axes.transAxes, color="white", linewidth=2,
        solid_capstyle="butt", path_effects=outlined(4.0),
    )  # fmt: skip
    axes.text(
        (0.05 + end) / 2, 0.07, f"{length} mm", transform=axes.transAxes, ha="center", va="bottom",
        color="white", fontsize=7, path_effects=outlined(),
    )  # fmt: skip
