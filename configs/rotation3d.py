"""Rotation in 3D: 10 classes.

python -m ssl3d.main --config=configs/rotation3d.py
"""

import ml_collections

from configs import default


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("rotation", rank, arg)
    config.task.group = "axes"  # the paper's 10 (4 in 2D), or all: the cube's 24
    config.task.turns = 1  # rotated versions of each crop
    config.task.coarsen = 1 if variant else default.coarsening(config)
    config.task.intensity = 0.3  # of the random monotone change of intensities
    if variant:
        config.task.intensity = 0.0
    if variant == "paper":
        config.task.turns = 2  # "multiple rotated versions per scan" (section 3.4)
    return config
