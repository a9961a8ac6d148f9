"""Foreground of an image: the head, the body, the fundus disc, and its bounding box."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from ssl3d.errors import UserError

Foreground = Literal["all", "nonzero", "head", "body", "disc"]
Box = tuple[tuple[int, int], ...]  # first and last-plus-one voxel along each axis

# HU between air and fat: the body without the gas in it.
BODY_THRESHOLD = -500.0
# Grey levels of 255; the black around a fundus is JPEG noise of a few levels.
DISC_THRESHOLD = 10.0
# Connected components are labelled on every n-th voxel: the table and the cables are thin.
COMPONENT_STEP = 4


def foreground(image: np.ndarray, kind: Foreground) -> np.ndarray:
    """The foreground mask of an image.

    Args:
      image: [*S, C] in source units.
      kind: see `Recipe.foreground`.

    Returns:
      bool [*S], not empty.

    Raises:
      UserError: no voxel is foreground.
    """
    if kind == "all":
        return np.ones(image.shape[:-1], bool)
    if kind == "nonzero":
        mask = np.any(image != 0, axis=-1)
    elif kind == "head":
        mask = np.zeros(image.shape[:-1], bool)
        for channel in range(image.shape[-1]):
            mask |= image[..., channel] > _otsu(image[..., channel])
        # Otsu's threshold leaves holes at the dark skull and ventricles.
        mask = np.asarray(ndimage.binary_fill_holes(_largest_component(mask)))
    else:
        threshold = BODY_THRESHOLD if kind == "body" else DISC_THRESHOLD
        mask = _largest_component(np.any(image > threshold, axis=-1))
    if not mask.any():
        raise UserError(
            f"no voxel is foreground ({kind}); is the image of another modality than the recipe "
            "expects?"
        )
    return mask


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that contains a mask [*S]. Raises `UserError`: an empty mask."""
    if not mask.any():
        raise UserError("no foreground is left on the new grid; use a finer one")
    box = []
    for axis in range(mask.ndim):
        planes = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append((int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)


def _otsu(values: np.ndarray) -> float:
    """The threshold that maximises the variance between two groups of values (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(centres[np.nanargmax(between[:-1])])


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that are connected to its largest component."""
    coarse = mask[(slice(None, None, COMPONENT_STEP),) * mask.ndim]
    parts = np.zeros(coarse.shape, np.int32)
    if ndimage.label(coarse, output=parts) == 0:  # empty, or specks between the samples
        return mask
    largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    # One coarse voxel more on each side, for the voxels between the samples.
    largest = ndimage.binary_dilation(largest, np.ones((3,) * mask.ndim))
    fine = largest
    for axis, size in enumerate(mask.shape):
        fine = np.repeat(fine, COMPONENT_STEP, axis)[(slice(None),) * axis + (slice(size),)]
    return mask & fine
