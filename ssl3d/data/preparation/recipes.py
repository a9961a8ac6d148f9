"""Recipes: named settings of the preparation, one per kind of image."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from ssl3d.data.geometry import Order
from ssl3d.data.intensity import (
    ABDOMEN_WINDOW,
    Scaling,
    ct_scaling,
    minmax_scaling,
    mr_scaling,
    picture_scaling,
)
from ssl3d.data.layouts.listing import Listing
from ssl3d.data.preparation.foreground import Foreground
from ssl3d.errors import UserError

Intensity = Literal["window", "zscore", "minmax", "picture"]

PAPER_CUBE = (128, 128, 128)  # Taleb et al. 2020, appendix A


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one kind of image is prepared.

    Attributes:
      name: as on the command line.
      rank: 3 for volumes, 2 for pictures.
      intensity: "window" (HU window to [-1, 1]), "zscore" (percentile clip, mean 0, deviation 1),
        "minmax" (to [0, 1], one range for all channels) or "picture" (z-score per colour).
      foreground: "all", "nonzero" (skull-stripped), "head" (brighter than air by Otsu's
        threshold), "body" (CT without air and table) or "disc" (fundus).
      crop: whether to crop to the bounding box of the foreground.
      spacing: mm to resample to; None keeps the spacing.
      size: voxels to stretch the image to; None keeps the size.
      order: interpolation of the image; label maps always use nearest neighbours.
      window: HU, for "window".
      fractions: shares of the subjects for "val" and "test"; the rest is "train".
    """

    name: str
    rank: int
    intensity: Intensity
    foreground: Foreground = "all"
    crop: bool = False
    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    order: Order = "linear"
    window: tuple[float, float] = ABDOMEN_WINDOW
    fractions: tuple[tuple[str, float], ...] = (("val", 0.2), ("test", 0.2))

    @property
    def kind(self) -> str:
        """The modality of DICOM series: "CT", "MR", or "" for pictures."""
        if self.rank == 2:
            return ""
        return "CT" if self.intensity == "window" else "MR"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # About 35 x 50 x 36 mm around the structure: small enough to keep as it is, and a cube
        # would stretch left and right hippocampi differently.
        Recipe("hippocampus", 3, "zscore", spacing=(1.0, 1.0, 1.0)),
        Recipe("pancreas", 3, "window", foreground="body", crop=True, size=PAPER_CUBE),
        Recipe("brats", 3, "zscore", foreground="nonzero", crop=True, size=PAPER_CUBE),
        # Without labels a test set would only take subjects from the pretraining.
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


def suggest(layout: str, listing: Listing) -> str:
    """The recipe's name by the layout, the name of the collection or its channels.

    Raises:
      UserError: the modality is unknown.
    """
    for name in ("hippocampus", "pancreas"):
        if name in listing.name.lower() and listing.rank == 3:
            return name
    if layout in RECIPES:
        return layout
    if listing.rank == 2:
        return "retina" if layout == "images" else "picture"
    names = " ".join(listing.modalities or ()).lower()
    if "ct" in names.split():
        return "ct"
    if any(word in names for word in ("mr", "t1", "t2", "flair", "pd", "dwi", "adc")):
        return "mr"
    raise UserError("the modality of these images is unknown: add --recipe=ct or --recipe=mr")


def from_document(document: dict[str, Any]) -> Recipe:
    """The recipe in a manifest. Raises TypeError: unknown fields."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    return Recipe(**fields)


def scaling(image: np.ndarray, mask: np.ndarray, recipe: Recipe) -> Scaling:
    """The recipe's normalisation of an image [*S, C] with the foreground `mask` [*S]."""
    if recipe.intensity == "window":
        return ct_scaling(recipe.window, image.shape[-1])
    if recipe.intensity == "minmax":
        return minmax_scaling(image, mask, joint=True)
    if recipe.intensity == "picture":
        return picture_scaling(image, mask)
    return mr_scaling(image, mask)
