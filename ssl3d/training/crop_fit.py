"""The crop of a proxy task, fitted to the collection.

A crop that reaches beyond an image would have to be continued, and whatever continues it is a
shortcut: on pure noise a network tells rotations apart by the mirror image at the border. So the
crop of a proxy task shrinks until it lies inside (nearly) all images, and the images that are
smaller still are left out of pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from ssl3d import bounds, tasks
from ssl3d.data import store
from ssl3d.errors import UserError

# Ids of images left out that are printed; `config.json` has them all.
_PRINTED = 8


class Fitted(NamedTuple):
    """What pretraining uses of a collection.

    Attributes:
      train_cases, validation_cases: those that hold the crop.
      left_out: ids of the others.
      message: what changed, in one line; "" if nothing did.
    """

    train_cases: tuple[store.Case, ...]
    validation_cases: tuple[store.Case, ...]
    left_out: tuple[str, ...]
    message: str


def fit_collection(
    config: ml_collections.ConfigDict,
    train_cases: Sequence[store.Case],
    validation_cases: Sequence[store.Case],
) -> Fitted:
    """Shrinks `config.data.crop` until `config.data.coverage` of the cases hold it.

    Settings that are derived from the crop, such as the jitter of patches, follow it.

    Raises:
      UserError: the config's own crop does not suit the task, or no case is large enough for any
        crop that does.
    """
    cases = [*train_cases, *validation_cases]
    shapes = np.array([image_shape(config, case) for case in cases])
    wanted = tuple(config.data.crop)
    tasks.build(config)  # what is wrong with the config itself is said of the config
    fitted = fit(
        shapes,
        wanted,
        config.data.coverage,
        equal=tasks.equal_axes(config),
        multiple=config.task.get("coarsen", 1),
        works=lambda crop: _suits_the_task(config, crop),
    )
    if fitted is None or not fitted.holds[: len(train_cases)].any():
        raise UserError(
            f"no image is large enough for {config.task.name}: the largest has "
            f"{_by(max(map(tuple, shapes), key=np.prod))} voxels, less config.data.margin; use "
            "fewer levels (config.encoder.depth), fewer patches per side, or a 2D config"
        )
    if fitted.crop != wanted:
        config.data.crop = fitted.crop
        bounds.derive(config)
    left_out = tuple(case.id for case in cases if not holds_crop(config, case))
    train, validation = (
        tuple(case for case in part if holds_crop(config, case))
        for part in (train_cases, validation_cases)
    )
    if not validation:
        raise UserError(
            f"no validation image holds a crop of {_by(fitted.crop)} voxels; prepare with another "
            "split, or lower config.data.crop"
        )
    return Fitted(train, validation, left_out, _message(wanted, fitted.crop, len(cases), left_out))


def image_shape(config: ml_collections.ConfigDict, case: store.Case) -> tuple[int, ...]:
    """*S of what a task gets of a case, in voxels: one slice for a 2D task, less the margin."""
    sides = list(case.shape)
    if len(sides) > config.rank:
        del sides[config.data.slice_axis]
    return tuple(side - 2 * config.data.margin for side in sides)


def holds_crop(config: ml_collections.ConfigDict, case: store.Case) -> bool:
    """Whether an image is at least as large as `config.data.crop` on every axis."""
    shape = image_shape(config, case)
    return all(side >= length for side, length in zip(shape, config.data.crop, strict=True))


def _suits_the_task(config: ml_collections.ConfigDict, crop: tuple[int, ...]) -> bool:
    trial = config.copy_and_resolve_references()
    trial.data.crop = crop
    bounds.derive(trial)
    try:
        tasks.build(trial)
    except UserError:
        return False
    return True


def _message(
    wanted: tuple[int, ...], crop: tuple[int, ...], count: int, left_out: Sequence[str]
) -> str:
    parts = []
    if crop != wanted:
        parts.append(f"crop {_by(wanted)} reduced to {_by(crop)} voxels, to lie inside the images")
    if left_out:
        names = ", ".join(left_out[:_PRINTED]) + ", ..." * (len(left_out) > _PRINTED)
        parts.append(
            f"{len(left_out)} of {count} images are smaller than the crop of {_by(crop)} voxels "
            f"and left out: {names}"
        )
    return "; ".join(parts)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(int(side)) for side in shape)


class Fit(NamedTuple):
    """A crop and the images that hold it.

    Attributes:
      crop: *S, in voxels, on no axis larger than what was asked for.
      holds: bool [N], whether an image is at least as large as the crop on every axis.
    """

    crop: tuple[int, ...]
    holds: np.ndarray


def fit(
    shapes: np.ndarray,
    wanted: Sequence[int],
    coverage: float,
    *,
    equal: Sequence[int] = (),
    multiple: int = 1,
    works: Callable[[tuple[int, ...]], bool] = lambda crop: True,
) -> Fit | None:
    """The largest crop that at least a share `coverage` of the images holds.

    Greedy: as long as the images to spare last, the axis grows on which dropping the smallest
    images gains the most voxels per image. Where the result is too small for the task, more images
    are dropped, until the crop works or none is left.

    Args:
      shapes: int [N, r], of the images, in voxels.
      wanted: the crop that is not exceeded, in voxels.
      coverage: in (0, 1].
      equal: axes along which the crop must have the same side.
      multiple: every side is a multiple of it.
      works: whether the task accepts a crop.

    Returns:
      None where no crop works that any image holds.
    """
    limits = np.minimum(shapes, np.asarray(wanted)) // multiple * multiple
    if len(equal):
        limits[:, list(equal)] = limits[:, list(equal)].min(axis=1, keepdims=True)
    holds = np.ones(len(limits), bool)
    spare = int((1 - coverage) * len(limits))
    while holds.any():
        crop = limits[holds].min(axis=0)
        best, best_gain = None, 0.0
        for axis in range(limits.shape[1]):
            smaller = holds & (limits[:, axis] == crop[axis])
            rest = holds & ~smaller
            if rest.any():
                growth = _voxels(limits[rest].min(axis=0)) / _voxels(crop)
                gain = np.log(growth) / smaller.sum()
                if gain > best_gain:
                    best, best_gain = rest, gain
        # To ask the task takes longer than all the rest.
        enough = best is None or len(limits) - best.sum() > spare
        if enough and crop.min() > 0 and works(tuple(int(side) for side in crop)):
            return Fit(tuple(int(side) for side in crop), holds)
        if best is None:
            return None
        holds = best
    return None


def _voxels(crop: np.ndarray) -> float:
    return float(np.prod(np.maximum(crop, 0.5)))
