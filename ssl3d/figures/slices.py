"""Middle slices of images, upright and windowed as a viewer shows them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from ssl3d.data import intensity


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

    Slices of volumes are transposed so that anterior or superior is up, as radiologists expect.

    Args:
      limits: [2, C], the values shown as black and as white, e.g. of `window`.
    """
    low, high = limits
    view = np.clip((view.astype(np.float32) - low) / np.maximum(high - low, 1e-6), 0, 1)
    if colour:
        axes.imshow(view, interpolation="nearest")
    else:
        axes.imshow(view[..., 0].T, cmap="gray", vmin=0, vmax=1, origin="lower")
    axes.set_xticks([])
    axes.set_yticks([])
