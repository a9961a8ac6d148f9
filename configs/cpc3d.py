"""Contrastive predictive coding in 3D.

python -m ssl3d.main --config=configs/cpc3d.py

Built-in brain, one CPU core: 94 s, accuracy 0.825 (chance 0.016).
"""

from ssl3d.bounds import POSITIVE, PROBABILITY, Config, at_least, bounded, derived
from ssl3d.configs import datasets, default

# The grid stays inside the body: patches of nothing but air cannot be told apart.
_INSIDE = {3: {"data.crop": (48, 48, 48), "data.margin": 6}}
SIZES: dict[str, datasets.Ranks] = {
    "phantom_brain": _INSIDE,
    "phantom_abdomen": _INSIDE,
    "phantom_fundus": {2: {"batch_size": 8}},  # of 25 overlapping patches each
    "hippocampus": {3: {"data.crop": (36, 48, 36)}, 2: {"data.crop": (35, 45)}},
}


def _half_a_patch(config: Config) -> int:
    """The overlap of the original code's 2D grid of five patches per side."""
    return min(config.data.crop) // 6


def _original_crop_of_a_patch(config: Config) -> int:
    """The original code crops patches to 7/8 (2D: 11/12) of their side and pads them again."""
    overlap = config.task.overlap
    patch = (config.data.crop[0] - overlap) // config.task.per_side + overlap
    share = 8 if config.rank == 3 else 12
    return max(patch - patch * (share - 1) // share, 1)


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("cpc", rank, arg, kind="patches", sizes=SIZES)
    # The original code's grids: 4 per side without overlap in 3D, 5 with half overlap in 2D.
    config.task.per_side = 4 if rank == 3 else 5
    # Voxels shared with the next patch.
    config.task.overlap = 0 if rank == 3 else derived(config, _half_a_patch)
    # Voxels of play of each patch in its cell.
    config.task.jitter = default.jitter(config, variant) if rank == 3 else 0
    config.task.anchor_row = 1  # the context's last row
    # Rows between context and targets. On smooth noise 0 lets a network reach 0.040 in 500 steps,
    # where chance is 0.016: patches that touch continue each other.
    config.task.skip = bounded(1, at_least(0))
    config.task.border = "mirror"  # of the context beyond the grid, or zero
    config.task.objective = "info_nce"  # or binary, the original code's
    config.task.temperature = bounded(0.1, POSITIVE)
    config.task.code = bounded(128, at_least(1))  # channels per patch (paper: 1024)
    # Channels of the recurrent network (original: 256).
    config.task.context = bounded(128, at_least(1))
    # Gain and shift of each patch, in units of the image's deviation.
    config.task.intensity = bounded(0.2, PROBABILITY)
    config.task.flip_rows = False  # each patch on its own along the predicted axis: a fault
    if variant:
        config.task.code = 1024
        config.task.context = 256
        config.task.intensity = 0.0
        config.task.skip = 0
    if variant == "paper":
        # "Overlapping" (section 3.1), by half as in the code's 2D grid.
        config.task.per_side = 5
        config.task.overlap = derived(config, _half_a_patch)
        config.task.jitter = 0
    if variant == "original":
        config.task.objective = "binary"
        config.task.jitter = derived(config, _original_crop_of_a_patch)
        config.task.flip_rows = rank == 3
        config.task.border = "mirror" if rank == 3 else "zero"
    return config
