"""Foreground of an image: the head, the body, the fundus disc, and its bounding box."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
# Share of the bright voxels that the box of the largest component must hold. Below it other
# components are no table or speck: the other leg, the tissue between bright vessels.
TRUSTED_SHARE = 0.75
# A component of at least this share of the largest one is anatomy.
LARGE_COMPONENT = 0.1
# Otsu's threshold separates vessels or fluid from everything else where the box of what is
# brighter is smaller than this share of the box of the darker tissue.
TRUSTED_EXTENT = 0.5
# Share of the image that a head fills at least, air around it included. In less, what is bright is
# no head: lesions, or what lies next to a surface coil.
LEAST_EXTENT = 0.15
# Share of the variance between the two groups of Otsu's threshold; 0.64 for one normal
# distribution.
BIMODAL = 0.8


class Found(NamedTuple):
    """The foreground of an image, and how much of what is bright its box holds.

    Attributes:
      mask: bool [*S], not empty.
      bright: voxels above the threshold, in the whole image.
      kept: those of them in the bounding box of the mask.
      remark: what is unusual; "" for nothing.
    """

    mask: np.ndarray
    bright: int
    kept: int
    remark: str = ""


def foreground(image: np.ndarray, kind: Foreground) -> np.ndarray:
    """The mask of `find_foreground`."""
    return find_foreground(image, kind).mask


def find_foreground(image: np.ndarray, kind: Foreground) -> Found:
    """The foreground of an image.

    Args:
      image: [*S, C] in source units.
      kind: see `Recipe.foreground`.

    Raises:
      UserError: no voxel is foreground.
    """
    if kind == "all":
        return Found(np.ones(image.shape[:-1], bool), image[..., 0].size, image[..., 0].size)
    remark = ""
    if kind == "nonzero":
        bright = mask = np.any(image != 0, axis=-1)
    else:
        if kind == "head":
            thresholds = [_otsu(image[..., channel])[0] for channel in range(image.shape[-1])]
        else:
            thresholds = [BODY_THRESHOLD if kind == "body" else DISC_THRESHOLD] * image.shape[-1]
        bright = _brighter(image, thresholds)
        mask = _largest_component(bright)
        if kind == "head" and mask.any():
            darker = _brighter(image, _lower_thresholds(image, thresholds))
            tissue = _largest_component(darker)
            if _extent(mask) < TRUSTED_EXTENT * _extent(tissue):
                bright, mask = darker, tissue
                remark = "something is far brighter than the tissue; the darker tissue counts too"
        if _share(bright, mask) < TRUSTED_SHARE:
            mask = _largest_component(bright, LARGE_COMPONENT)
            if _share(bright, mask) < TRUSTED_SHARE:
                mask = bright
            remark = "the foreground falls into several parts; all large ones are kept"
        if kind == "head" and mask.any() and _extent(mask) < LEAST_EXTENT * mask.size:
            bright = mask = np.ones(image.shape[:-1], bool)
            remark = "only a small part of the image is bright; all of it is kept"
    if not mask.any():
        raise UserError(
            f"no voxel is foreground ({kind}); is the image of another modality than the recipe "
            "expects?"
        )
    kept = int(bright[_slices(mask)].sum())
    if kind == "head":
        # Otsu's threshold leaves holes at the dark skull and ventricles.
        mask = np.asarray(ndimage.binary_fill_holes(mask))
    return Found(mask, int(bright.sum()), kept, remark)


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that contains a mask [*S]. Raises `UserError`: an empty mask."""
    if not mask.any():
        raise UserError("no foreground is left on the new grid; use a finer one")
    box = []
    for axis in range(mask.ndim):
        planes = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        box.append((int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)


def _slices(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounding_box(mask))


def _extent(mask: np.ndarray) -> int:
    """Voxels of the bounding box; 0 for an empty mask."""
    return int(mask[_slices(mask)].size) if mask.any() else 0


def _share(bright: np.ndarray, mask: np.ndarray) -> float:
    """The share of `bright` in the bounding box of `mask`; 1 if there is nothing."""
    if not mask.any():
        return 1.0
    return float(bright[_slices(mask)].sum()) / float(bright.sum())


def _brighter(image: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """Where an image [*S, C] exceeds the threshold of any channel, bool [*S]."""
    mask = np.zeros(image.shape[:-1], bool)
    for channel, threshold in enumerate(thresholds):
        mask |= image[..., channel] > threshold
    return mask


def _lower_thresholds(image: np.ndarray, thresholds: list[float]) -> list[float]:
    """For each channel the threshold between air and tissue among what is not `bright`.

    Means of blocks tell tissue from noise. Where they form one group, as in plain air, the
    threshold stays.
    """
    lower = []
    for channel, threshold in enumerate(thresholds):
        means, most = _blocks(image[..., channel])
        rest = means[most <= threshold]
        found, separation = _otsu(rest) if rest.size > 1 and np.ptp(rest) > 0 else (threshold, 0.0)
        lower.append(found if separation >= BIMODAL else threshold)
    return lower


def _blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and maximum of blocks of `COMPONENT_STEP` voxels per side; the remainder is left out."""
    sides = [min(COMPONENT_STEP, size) for size in values.shape]
    counts = [size // side for size, side in zip(values.shape, sides, strict=True)]
    whole = values[tuple(slice(n * side) for n, side in zip(counts, sides, strict=True))]
    split = whole.reshape([m for pair in zip(counts, sides, strict=True) for m in pair])
    within = tuple(range(1, split.ndim, 2))
    return split.mean(axis=within), split.max(axis=within)


def _otsu(values: np.ndarray) -> tuple[float, float]:
    """The threshold that maximises the variance between two groups of values (Otsu 1979).

    Returns:
      The threshold, and the share of the variance that lies between the groups.
    """
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    best = int(np.nanargmax(between[:-1]))
    total = below[-1] * (counts * (centres - mass[-1] / below[-1]) ** 2).sum()
    return float(centres[best]), float(between[best] / total) if total else 0.0


def _largest_component(mask: np.ndarray, share: float = 1.0) -> np.ndarray:
    """The voxels of a mask that are connected to its largest component.

    Args:
      share: of the largest component's size, from which other components count too.
    """
    coarse = mask[(slice(None, None, COMPONENT_STEP),) * mask.ndim]
    parts = np.zeros(coarse.shape, np.int32)
    if ndimage.label(coarse, output=parts) == 0:  # empty, or specks between the samples
        return mask
    sizes: np.ndarray = np.bincount(parts.ravel())
    sizes[0] = 0
    chosen = sizes >= share * sizes.max()
    if share == 1:
        chosen[int(np.argmax(sizes)) + 1 :] = False  # one of two equally large ones
    largest = chosen[parts]
    # One coarse voxel more on each side, for the voxels between the samples.
    largest = ndimage.binary_dilation(largest, np.ones((3,) * mask.ndim))
    fine = largest
    for axis, size in enumerate(mask.shape):
        fine = np.repeat(fine, COMPONENT_STEP, axis)[(slice(None),) * axis + (slice(size),)]
    return mask & fine
