"""Rotation in 3D: 10 classes.

python -m ssl3d.main --config=configs/rotation3d.py

Built-in brain, one CPU core: 102 s, accuracy 1.000 (chance 0.100).
"""

from ssl3d.bounds import PROBABILITY, Config, bounded
from ssl3d.configs import datasets, default

# Learned soon, from many volumes at half the resolution; see `default.coarsening`.
_MANY = {3: {"batch_size": 24, "steps": 100}}
SIZES: dict[str, datasets.Ranks] = {"phantom_brain": _MANY, "phantom_abdomen": _MANY}


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("rotation", rank, arg, kind="whole", sizes=SIZES)
    # The paper's 10 (4 in 2D); all: the cube's 24; xy, xz or yz: the 4 of one plane of a volume.
    config.task.group = "axes"
    # Whether axes are smoothed to equal sharpness, measured on the collection when a run starts.
    config.task.even = not variant
    config.task.blur = (0.0,) * rank  # variance per axis, in voxels^2; set by `even`
    config.task.turns = 1  # rotated versions of each crop
    # Voxels per side averaged into one.
    config.task.coarsen = 1 if variant else default.coarsening(config)
    # Strength of the random monotone intensity change.
    config.task.intensity = bounded(0.3, PROBABILITY)
    if variant:
        config.task.intensity = 0.0
    if variant == "paper":
        config.task.turns = 2  # "multiple rotated versions per scan" (section 3.4)
    return config
