"""Exemplar in 3D: recognise a volume after a transformation.

python -m ssl3d.main --config=configs/exemplar3d.py

Built-in brain, one CPU core: 106 s, the right one among 32 in a share of 0.312 (chance 0.031).
"""

from ssl3d.bounds import POSITIVE, PROBABILITY, SHARE, Config, at_least, bounded
from ssl3d.configs import datasets, default

# Negatives need volumes, at half the resolution; see `default.coarsening`.
_MANY = {3: {"data.crop": (48, 48, 48), "batch_size": 24, "steps": 180}}
SIZES: dict[str, datasets.Ranks] = {"phantom_brain": _MANY, "phantom_abdomen": _MANY}


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("exemplar", rank, arg, kind="whole", sizes=SIZES)
    config.task.objective = "margin"  # or original, with three heads
    config.task.margin = bounded(1.0, POSITIVE)  # paper, equation 3
    config.task.code = bounded(128, at_least(1))  # channels of the embedding (paper: 1024)
    config.task.pool = bounded(
        32, at_least(2)
    )  # volumes among which validation seeks the right one
    # Voxels per side averaged into one.
    config.task.coarsen = 1 if variant else default.coarsening(config)
    # Probabilities of the transformations (paper, appendix A: turns 0.5, zoom 0.2).
    config.task.flip = bounded(0.5, PROBABILITY)
    config.task.turn = bounded(0.5, PROBABILITY)
    config.task.zoom = bounded(0.2, PROBABILITY)
    config.task.zoom_amount = bounded(0.2, SHARE)  # factors in 1 ± this
    # Strength of the random monotone intensity change, its gain and its shift.
    config.task.intensity = bounded(0.9, PROBABILITY)
    # Instead, as published: the probability of another brightness and contrast (paper: 0.5), the
    # shift in ± this share of the range of intensities, and the factor in 1 ± this.
    config.task.brightness_contrast = bounded(0.0, PROBABILITY)
    config.task.brightness = bounded(0.125, SHARE)
    config.task.contrast = bounded(0.5, SHARE)
    if variant:
        config.task.code = 1024
        config.task.intensity = 0.0
        config.task.brightness_contrast = 0.5
    if variant == "original":
        config.task.objective = "original"
        config.task.zoom = 0.15
        if rank == 2:
            config.task.turn = 1.0
            config.task.zoom = 0.0
            config.task.brightness_contrast = 1.0
            config.task.brightness = config.task.contrast = 0.2
        config.head.hidden = ()
        config.head.batch_norm = False
    return config
