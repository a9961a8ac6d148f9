"""Sizes from the manifest: the crop, the encoder's depth and the batch that suit a collection.

A preset without sizes of its own lets these three follow from the median shape and spacing of the
images. What is set explicitly stays, and the others follow from it too.

    crop    inside the images, of equal extent in mm along the axes that are long enough, and of at
            most as many voxels as the reference; every axis of what the encoder is shown (a patch,
            a view) divides evenly down to the bottleneck
    depth   the deepest with enough voxels at the bottleneck
    batch   the reference's number of voxels, at most half of the training cases

The rules of nnU-Net (Isensee et al. 2021), for encoders that halve every axis.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_collections
import numpy as np

from ssl3d import bounds
from ssl3d.data import store
from ssl3d.errors import UserError

Key = Literal["data.crop", "encoder.depth", "batch_size"]
KEYS: tuple[Key, ...] = ("data.crop", "encoder.depth", "batch_size")

# At most so many times the reference's batch: small images take more steps instead.
_BATCHES = 4
# A depth whose crop would lose more of the voxels than this is given up for a shallower one.
_LEAST_KEPT = 0.6


class Sizes(NamedTuple):
    """A crop *S in voxels, an encoder's levels, and the examples per step."""

    crop: tuple[int, ...]
    depth: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class FromData:
    """The rule by which a key of a config follows from its data set.

    Attributes:
      key: one of `KEYS`.
      reference: crop and batch that a step is to cost no more than; the deepest encoder.
      least: voxels at the bottleneck.
    """

    key: Key
    reference: Sizes
    least: int

    def __call__(self, config: ml_collections.ConfigDict) -> Any:
        """Raises `bounds.Pending` without a data set, `UserError` for a damaged one."""
        return getattr(choose(config, self.reference, self.least), self.key.rpartition(".")[2])


def follow_data(config: bounds.Config, kind: str, given: Collection[str]) -> None:
    """Lets the `KEYS` of a config follow from its data set, in place; their values are references.

    Args:
      kind: of the task, see `configs.datasets`. A bottleneck of 4 voxels per side compares the
        parts of a whole crop; a patch makes do with fewer.
      given: keys that stay.
    """
    reference = Sizes(tuple(config.data.crop), config.encoder.depth, config.batch_size)
    least = 8 if kind == "patches" else 4**config.rank
    for key in KEYS:
        if key not in given:
            section, name = _place(config, key)
            rule = FromData(key, reference, least)
            section[name] = bounds.derived(config, rule, pending=section[name])
    if "batch_size" not in given:
        bounds.make_automatic(config, "batch_size")


def choose(config: ml_collections.ConfigDict, reference: Sizes, least: int) -> Sizes:
    """The sizes for the data set of a config; those that were set stay. See `FromData`."""
    images = _images(config)
    free = frozenset(_following(config))
    trial = config.copy_and_resolve_references()
    for key in KEYS:
        section, name = _place(trial, key)
        # Ends the rule in the copy; what follows does not depend on an earlier choice.
        section[name] = getattr(reference, name) if key in free else section[name]
    asked = (trial.to_json(), images.digest, free, reference, least)
    if _last.get("asked") != asked:  # each of the three keys asks, one after the other
        _last.update(asked=asked, chosen=_choose(trial, images, free, reference, least))
    return _last["chosen"]


# The last question and its answer.
_last: dict[str, Any] = {}


def _choose(
    trial: ml_collections.ConfigDict,
    images: _Images,
    free: Collection[Key],
    reference: Sizes,
    least: int,
) -> Sizes:
    if "data.crop" in free:
        found = _fit(trial, images, reference, least, "encoder.depth" in free)
        trial.data.crop, trial.encoder.depth = found
    elif "encoder.depth" in free:
        trial.encoder.depth = _depth(trial, reference, least)
    if "batch_size" in free:
        share = math.prod(reference.crop) / math.prod(trial.data.crop)
        most = min(reference.batch_size * min(share, _BATCHES), images.train / 2)
        trial.batch_size = max(2 ** int(math.log2(max(most, 1))), 2)
    return Sizes(tuple(trial.data.crop), trial.encoder.depth, trial.batch_size)


def explain(config: ml_collections.ConfigDict) -> str:
    """The sizes that follow from the data set and why, in one line; "" if none do."""
    free = _following(config)
    if not free:
        return ""
    images = _images(config)
    parts = []
    if "data.crop" in free:
        reference = free["data.crop"].reference.crop
        full = math.prod(np.minimum(images.inside(config), np.median(images.shapes, axis=0)))
        inside = (
            f"inside {config.data.coverage:.0%} of the images"
            if "coverage" in config.data
            else "no larger than the median"
        )
        most = math.prod(reference)
        budget = f", of at most {most:,} voxels" if full > most else ""
        parts.append(f"config.data.crop={tuple(config.data.crop)} ({inside}{budget})")
    if "encoder.depth" in free:
        shown = min(_shown(config), key=math.prod)
        bottom = -(-np.array(shown) // _strides(config))
        why = f"{_by(shown)} voxels shown, {_by(bottom)} at the bottleneck"
        parts.append(f"config.encoder.depth={config.encoder.depth} ({why})")
    if "batch_size" in free:
        why = f"{config.batch_size * math.prod(config.data.crop):,} voxels, {images.train} cases"
        parts.append(f"config.batch_size={config.batch_size} ({why})")
    return (
        f"from images of {_by(np.median(images.shapes, axis=0))} voxels of "
        f"{_by(np.median(images.spacings, axis=0))} mm (medians): " + ", ".join(parts)
    )


class _Images(NamedTuple):
    """Shapes [N, r] in voxels and spacings [N, r] in mm as a task sees them; training cases."""

    shapes: np.ndarray
    spacings: np.ndarray
    train: int
    digest: object  # equal for the same images

    def inside(self, config: ml_collections.ConfigDict) -> np.ndarray:
        """The largest crop that lies inside enough of the images."""
        from ssl3d.training import crop_fit

        if "coverage" not in config.data:  # the mirror image continues smaller images
            return np.median(self.shapes, axis=0).astype(int)
        largest = tuple(self.shapes.max(axis=0).tolist())
        fitted = crop_fit.fit(self.shapes, largest, config.data.coverage)
        return np.array(fitted.crop if fitted else self.shapes.min(axis=0))


def _images(config: ml_collections.ConfigDict) -> _Images:
    path = Path(config.data.path)
    file = path / store.MANIFEST
    if not config.data.path or not file.is_file():
        raise bounds.Pending("chosen when config.data.path holds a prepared data set")
    stat = file.stat()
    shapes, spacings, train = _table(path, tuple(config.data.train_splits), stat.st_mtime_ns)
    if not len(shapes) or shapes.shape[1] < config.rank:
        raise bounds.Pending("chosen when config.data.path has images of the config's rank")
    if shapes.shape[1] > config.rank and config.data.slice_axis in range(shapes.shape[1]):
        shapes, spacings = (np.delete(x, config.data.slice_axis, 1) for x in (shapes, spacings))
    shapes = np.maximum(shapes - 2 * config.data.margin, 1)
    return _Images(shapes, spacings, train, (path, stat.st_mtime_ns))


@functools.lru_cache(maxsize=8)
def _table(path: Path, splits: tuple[str, ...], changed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Shapes and spacings of the cases to train and validate on, and the number of the former.

    Cached: a config is derived many times. `changed` is the time of the manifest's last change.
    """
    dataset = store.read(path)
    cases = dataset.split(*splits, "val")
    shapes = np.array([case.shape for case in cases], int).reshape(-1, dataset.rank)
    spacings = np.array([case.spacing for case in cases], float).reshape(-1, dataset.rank)
    return shapes, spacings, len(dataset.split(*splits))


def _following(config: ml_collections.ConfigDict) -> dict[Key, FromData]:
    """The keys that follow from the data set, with their rules."""
    found = {}
    for key in KEYS:
        section, name = _place(config, key)
        rule = bounds.rules(section).get(name) if isinstance(section, bounds.Config) else None
        if isinstance(rule, FromData):
            found[key] = rule
    return found


def _place(config: Any, key: Key) -> tuple[Any, str]:
    section, _, name = key.rpartition(".")
    return (config[section] if section else config), name


def _fit(
    trial: ml_collections.ConfigDict,
    images: _Images,
    reference: Sizes,
    least: int,
    any_depth: bool,
) -> tuple[tuple[int, ...], int]:
    """The crop and the depth; `trial` is changed."""
    from ssl3d import tasks

    equal = list(tasks.equal_axes(trial))
    inside = images.inside(trial)
    if equal:
        inside[equal] = inside[equal].min()
    spacing = np.median(images.spacings, axis=0)
    limits = _within(inside, spacing, math.prod(reference.crop), equal)
    depths = range(reference.depth, 0, -1) if any_depth else (trial.encoder.depth,)
    for depth in depths:
        trial.encoder.depth = depth
        crop = _divisible(trial, limits, equal)
        if crop and math.prod(crop) >= _LEAST_KEPT * math.prod(limits) and _works(trial, least):
            return crop, depth
    # Sides that an encoder rounds up are better than none.
    trial.data.crop = tuple(int(side) for side in limits)
    return trial.data.crop, _depth(trial, reference, least) if any_depth else depths[0]


def _within(
    inside: np.ndarray, spacing: np.ndarray, voxels: int, equal: Sequence[int]
) -> np.ndarray:
    """The largest crop inside `inside` of equal extent in mm and at most so many voxels."""
    step = spacing.copy()
    if len(equal):
        step[equal] = step[equal].mean()

    def crop(extent: float) -> np.ndarray:
        return np.minimum(inside, np.maximum(extent / step, 1)).astype(int)

    low, high = 0.0, float((inside * step).max()) + float(step.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(crop(middle).tolist()) <= voxels else (low, middle)
    return crop(low)


def _divisible(
    trial: ml_collections.ConfigDict, limits: np.ndarray, equal: Sequence[int]
) -> tuple[int, ...] | None:
    """The crop below `limits` of which the encoder is shown what `_excess` has nothing against."""
    sides = limits.copy()
    while sides.min() >= 1:
        trial.data.crop = tuple(int(side) for side in sides)
        bounds.derive(trial)  # jitter, overlap and view follow the crop
        try:
            excess = _excess(trial)
        except UserError:
            return None
        if not excess.any():
            return tuple(trial.data.crop)
        sides -= excess  # at least: patches and views shrink no faster than the crop
        if len(equal):
            sides[equal] = sides[equal].min()
    return None


def _depth(trial: ml_collections.ConfigDict, reference: Sizes, least: int) -> int:
    """The depth for a crop that is set: the deepest that works, or one less if it then divides."""
    working = []
    for depth in range(reference.depth, 0, -1):
        trial.encoder.depth = depth
        bounds.derive(trial)
        if _works(trial, least):
            working.append((depth, not _excess(trial).any()))
    for depth, even in working[:2]:
        if even:
            return depth
    return working[0][0] if working else min(reference.depth, 2)


def _works(trial: ml_collections.ConfigDict, least: int) -> bool:
    """Whether task and encoder accept the sizes, with enough voxels at the bottleneck."""
    from ssl3d import tasks
    from ssl3d.models import encoders

    try:
        for size in _shown(trial):
            encoders.build(trial.encoder, size)
            if encoders.smallest_norm(trial.encoder, size) < least:
                return False
        if tasks.needs(trial) == "image":
            tasks.build(trial)
    except UserError:
        return False
    return True


def _shown(config: ml_collections.ConfigDict) -> Sequence[tuple[int, ...]]:
    from ssl3d import tasks

    return tasks.encoded_sizes(config)


def _excess(config: ml_collections.ConfigDict) -> np.ndarray:
    """Voxels [r] by which what is shown exceeds a multiple of the encoder's last stride.

    An axis shorter than that ends at one voxel on the way; the small patches of a proxy task, which
    the encoder rounds up, may end at two.
    """
    from ssl3d import tasks

    shown, strides = np.array(_shown(config)), _strides(config)
    short = strides * (2 if tasks.needs(config) == "image" else 1)
    return np.where(shown < short, 0, shown % strides).max(axis=0)


def _strides(config: ml_collections.ConfigDict) -> np.ndarray:
    """Voxels of the input per voxel of the bottleneck [r]."""
    from ssl3d.models import encoders

    return np.array(encoders.total_strides(config.encoder, config.rank))


def _by(numbers: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
