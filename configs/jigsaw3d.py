"""Jigsaw in 3D: 27 patches, 100 permutations.

python -m ssl3d.main --config=configs/jigsaw3d.py

Built-in brain, one CPU core: 39 s, accuracy 1.000 (chance 0.010).
"""

from ssl3d.bounds import PROBABILITY, Config, at_least, bounded
from ssl3d.configs import datasets, default

# Learned soonest, in the longest steps: 27 patches of each volume are encoded.
_SHORT = {3: {"batch_size": 4, "steps": 120}}
SIZES: dict[str, datasets.Ranks] = {"phantom_brain": _SHORT, "phantom_abdomen": _SHORT}


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("jigsaw", rank, arg, kind="patches", sizes=SIZES)
    config.task.per_side = 3
    # Voxels of play of each patch in its cell.
    config.task.jitter = default.jitter(config, variant)
    config.task.permutations = 100  # original: 100, paper: 1000
    config.task.permutation_seed = bounded(0, at_least(0))
    config.task.spread = True  # permutations far apart in Hamming distance
    config.task.puzzles = 8  # that share one encoding of their patches
    # Channels per patch (paper, appendix A); 0: the encoder's, without a layer in between.
    config.task.code = bounded(64, at_least(0))
    # Gain and shift of each patch, in units of the image's deviation.
    config.task.intensity = bounded(0.2, PROBABILITY)
    if variant:
        config.task.puzzles = 1
        config.task.intensity = 0.0
    if variant == "paper":
        config.task.permutations = 1000
    if variant == "original":
        config.task.spread = False
        config.task.code = 0
    return config
