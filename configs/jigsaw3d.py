"""Jigsaw in 3D: 27 patches, 100 permutations.

python -m ssl3d.main --config=configs/jigsaw3d.py
"""

import ml_collections

from configs import default


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("jigsaw", rank, arg)
    config.task.per_side = 3
    config.task.jitter = default.jitter(config, 3, variant)
    config.task.permutations = 100  # original: 100, paper: 1000
    config.task.permutation_seed = 0
    config.task.spread = True  # chosen for large Hamming distance
    config.task.puzzles = 8  # that share one encoding of their patches
    config.task.code = 64  # per patch (paper, appendix A)
    config.task.intensity = 0.2  # gain and shift of each patch, in units of the image's deviation
    if variant:
        config.task.puzzles = 1
        config.task.intensity = 0.0
    if variant == "paper":
        config.task.permutations = 1000
    if variant == "original":
        config.task.spread = False
        config.task.code = 16 * config.encoder.width  # the bottleneck's, as no layer is between
    return config
