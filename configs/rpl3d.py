"""Relative patch location in 3D: 26 classes.

python -m ssl3d.main --config=configs/rpl3d.py
"""

import ml_collections

from configs import default


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("rpl", rank, arg)
    config.task.per_side = 3
    config.task.jitter = default.jitter(config, 3, variant)
    config.task.queries = 8 if rank == 3 else 4  # that share one encoding of the centre
    config.task.intensity = 0.2  # gain and shift of each patch, in units of the image's deviation
    if variant:
        config.task.queries = 1
        config.task.intensity = 0.0
    return config
