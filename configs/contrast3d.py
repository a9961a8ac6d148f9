"""Contrast in 3D: crops of one volume agree, those of other volumes differ.

python -m ssl3d.main --config=configs/contrast3d.py

Built-in brain, one CPU core: 96 s, the right one among 32 in a share of 0.609 (chance 0.031).
"""

import math

from ssl3d.bounds import (
    POSITIVE,
    PROBABILITY,
    SHARE,
    Bound,
    Config,
    at_least,
    bounded,
    derived,
    one_of,
)
from ssl3d.configs import datasets, default

# Negatives need volumes, at half the resolution; see `default.coarsening`.
_MANY = {3: {"batch_size": 24, "steps": 250}}
SIZES: dict[str, datasets.Ranks] = {"phantom_brain": _MANY, "phantom_abdomen": _MANY}


def _view(config: Config) -> tuple[int, ...]:
    """Two thirds of the crop, or half of it for a grid of base crops.

    Less along long axes where the zoom's rim, a share of the longest side, would take more than
    half of the shortest axis.
    """
    coarsen, crop = config.task.coarsen, config.data.crop
    if config.task.objective == "overlap":
        return tuple(max(side // 2 // coarsen, 1) * coarsen for side in crop)
    grow = _rim(config)
    longest = min(int(max(crop) * 2 / 3), int(min(crop) / 2 / grow) if grow else max(crop))
    room = 2 * math.ceil(longest / 2 * grow)
    sides = (min(int(side * 2 / 3), longest, side - room) for side in crop)
    return tuple(max(side // coarsen, 1) * coarsen for side in sides)


def _rim(config: Config) -> float:
    """Voxels around a view, for the zoom, per voxel of half its longest side."""
    amount = config.task.zoom_amount if config.task.zoom else 0.0
    return amount / (1 - amount)


def _three_weights(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and min(values) >= 0


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config(
        "contrast", rank, arg, kind="patches", sizes=SIZES, variants=("",)
    )
    # info_nce: the views of other subjects are negatives. vicreg: without negatives. overlap:
    # predict the share of a random crop in each of a grid of base crops.
    config.task.objective = bounded("info_nce", one_of("info_nce", "vicreg", "overlap"))
    # Voxels per side averaged into one.
    config.task.coarsen = default.coarsening(config)
    # Least share of each side of a view that the other one sees too; 0: both lie anywhere.
    config.task.min_overlap = bounded(0.0, PROBABILITY)
    config.task.temperature = bounded(0.1, POSITIVE)  # of info_nce
    # Of invariance, variance and covariance in vicreg (Bardes et al. 2022).
    config.task.weights = bounded((25.0, 25.0, 1.0), Bound(_three_weights, "three, 0 or more"))
    config.task.code = bounded(128, at_least(1))  # channels of the embedding
    # Volumes among which validation seeks the right one.
    config.task.pool = bounded(32, at_least(2))
    # Probability of a zoom by factors in 1 ± zoom_amount; none for overlap.
    config.task.zoom = bounded(0.5, PROBABILITY)
    config.task.zoom_amount = bounded(0.1, SHARE)
    config.task.view = derived(config, _view)  # voxels of a view, inside the crop
    # Strength of the random monotone intensity change.
    config.task.intensity = bounded(0.5, PROBABILITY)
    # Largest deviation of the Gaussian noise, in units of the image's deviation.
    config.task.noise = bounded(0.1, at_least(0))
    return config
