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
    # Which way is up shows at half the resolution too, and four times the volumes fit in a step.
    coarse = rank == 3 and config.data.preset.startswith("phantom")
    config.task.coarsen = 2 if coarse and not variant else 1
    config.task.intensity = 0.3  # of the random monotone change of intensities
    if variant:
        config.task.intensity = 0.0
    if variant == "paper":
        config.task.turns = 2  # "multiple rotated versions per scan" (section 3.4)
    return config
