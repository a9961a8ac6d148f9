"""Recipes: how the images of a collection become what the network sees, by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from ssl3d.data import intensity
from ssl3d.data.geometry import Order
from ssl3d.errors import UserError

Foreground = Literal["all", "nonzero", "head", "body", "disc"]
Intensity = Literal["window", "zscore", "minmax", "picture"]

PAPER_CUBE = (128, 128, 128)  # Taleb et al. 2020, appendix A
# HU between air and fat: the body, its gas left out.
BODY_THRESHOLD = -500.0
# Grey levels of 255; the black around a fundus is JPEG noise of a few levels.
DISC_THRESHOLD = 10.0
# Connected components are looked for on every n-th voxel: the table and the cables are thin.
COMPONENT_STEP = 4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to prepare one kind of image.

    Attributes:
      name: as on the command line.
      rank: 3 for volumes, 2 for pictures.
      intensity: "window" (HU window to [-1, 1]), "zscore" (percentile clip, mean 0, deviation 1),
        "minmax" (to [0, 1], one range for all channels) or "picture" (z-score per colour).
      foreground: which voxels matter: "all", "nonzero" (skull-stripped), "head" (brighter than
        air, by Otsu's threshold), "body" (CT without air and table), "disc" (fundus).
      crop: whether to crop to the bounding box of the foreground.
      spacing: mm to resample to, or None to leave it.
      size: voxels to stretch the image to, or None.
      order: interpolation of the image; labels are always nearest.
      window: HU, for "window".
      fractions: of the subjects, "val" and "test"; the rest is "train".
    """

    name: str
    rank: int
    intensity: Intensity
    foreground: Foreground = "all"
    crop: bool = False
    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    order: Order = "linear"
    window: tuple[float, float] = intensity.ABDOMEN_WINDOW
    fractions: tuple[tuple[str, float], ...] = (("val", 0.2), ("test", 0.2))


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # About 35 x 50 x 36 mm around the structure: small enough to leave as it is, and a cube
        # would stretch left and right hippocampi differently.
        Recipe("hippocampus", 3, "zscore", spacing=(1.0, 1.0, 1.0)),
        Recipe("pancreas", 3, "window", foreground="body", crop=True, size=PAPER_CUBE),
        Recipe("brats", 3, "zscore", foreground="nonzero", crop=True, size=PAPER_CUBE),
        # No labels: a test set would only be taken from the pretraining.
        Recipe(
            "ukb",
            3,
            "zscore",
            foreground="nonzero",
            crop=True,
            size=PAPER_CUBE,
            fractions=(("val", 0.02), ("test", 0.0)),
        ),
        Recipe("retina", 2, "picture", foreground="disc", crop=True, size=(224, 224)),
        # For collections without a recipe of their own.
        Recipe("ct", 3, "window", foreground="body", crop=True, spacing=(1.0, 1.0, 1.0)),
        Recipe("mr", 3, "zscore", foreground="head", crop=True, spacing=(1.0, 1.0, 1.0)),
        Recipe("picture", 2, "picture", size=(224, 224)),
    )
}


def from_document(document: dict[str, Any]) -> Recipe:
    """The recipe that a manifest describes. Raises TypeError for unknown fields."""
    return Recipe(**{key: tuple(v) if isinstance(v, list) else v for key, v in document.items()})


def foreground(image: np.ndarray, kind: Foreground) -> np.ndarray:
    """The voxels that matter.

    Args:
      image: [*S, C] in source units.
      kind: see `Recipe.foreground`.

    Returns:
      bool [*S], true somewhere.

    Raises:
      UserError: nothing is foreground.
    """
    if kind == "all":
        return np.ones(image.shape[:-1], bool)
    if kind == "nonzero":
        mask = (image != 0).any(axis=-1)
    elif kind == "head":
        mask = np.zeros(image.shape[:-1], bool)
        for channel in range(image.shape[-1]):
            mask |= image[..., channel] > _otsu(image[..., channel])
        # Otsu's threshold leaves holes where the skull and the ventricles are dark.
        mask = ndimage.binary_fill_holes(_largest_component(mask))
    else:
        threshold = BODY_THRESHOLD if kind == "body" else DISC_THRESHOLD
        mask = _largest_component((image > threshold).any(axis=-1))
    if not mask.any():
        raise UserError(
            f"nothing in the image is foreground ({kind}); is it of another modality than the "
            "recipe expects?"
        )
    return mask


def _otsu(values: np.ndarray) -> float:
    """The threshold that separates the values best into two groups (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(centres[np.nanargmax(between[:-1])])


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """The mask without what does not hang together with its largest part."""
    coarse = mask[(slice(None, None, COMPONENT_STEP),) * mask.ndim]
    parts, count = ndimage.label(coarse)
    if count == 0:  # nothing, or only specks that no sample met
        return mask
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    # One coarse voxel more on each side, for what lies between the samples.
    largest = ndimage.binary_dilation(largest, np.ones((3,) * mask.ndim))
    fine = largest
    for axis, size in enumerate(mask.shape):
        fine = np.repeat(fine, COMPONENT_STEP, axis)[(slice(None),) * axis + (slice(size),)]
    return mask & fine


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First and last-plus-one true voxel along each axis. Raises `UserError` where none is."""
    if not mask.any():
        raise UserError("nothing of the foreground is left on the new grid; use a finer one")
    box = []
    for axis in range(mask.ndim):
        planes = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append((int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)


def scaling(image: np.ndarray, mask: np.ndarray, recipe: Recipe) -> intensity.Scaling:
    """The recipe's normalisation for an image [*S, C] with foreground `mask` [*S]."""
    if recipe.intensity == "window":
        return intensity.ct_scaling(recipe.window, image.shape[-1])
    if recipe.intensity == "minmax":
        return intensity.minmax_scaling(image, mask, joint=True)
    if recipe.intensity == "picture":
        return intensity.picture_scaling(image, mask)
    return intensity.mr_scaling(image, mask)
