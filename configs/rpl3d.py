"""Relative patch location in 3D: 26 classes.

python -m ssl3d.main --config=configs/rpl3d.py

Built-in brain, one CPU core: 33 s, accuracy 0.982 (chance 0.038).
"""

from ssl3d.bounds import PROBABILITY, Config, bounded
from ssl3d.configs import datasets, default

SIZES: dict[str, datasets.Ranks] = {
    # Short steps: four queries of each picture.
    "phantom_fundus": datasets.both_ranks({"steps": 400}),
    # The reference code's batch.
    **{name: {3: {"batch_size": 32}, 2: {"batch_size": 128}} for name in datasets.PAPER_SIZED},
}


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("rpl", rank, arg, kind="patches", sizes=SIZES)
    config.task.per_side = 3
    # Voxels of play of each patch in its cell.
    config.task.jitter = default.jitter(config, variant)
    config.task.queries = 8 if rank == 3 else 4  # that share one encoding of the centre
    # Gain and shift of each patch, in units of the image's deviation.
    config.task.intensity = bounded(0.2, PROBABILITY)
    if variant:
        config.task.queries = 1
        config.task.intensity = 0.0
    return config
