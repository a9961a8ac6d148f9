"""Contrastive predictive coding in 3D.

python -m ssl3d.main --config=configs/cpc3d.py
"""

import ml_collections

from configs import default


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("cpc", rank, arg)
    side = config.data.crop[0]
    # The original code's grids: 4 per side without overlap in 3D, 5 with half overlap in 2D.
    config.task.per_side = 4 if rank == 3 else 5
    config.task.overlap = 0 if rank == 3 else side // 6  # voxels shared with the next patch
    config.task.jitter = default.jitter(config, 4, variant) if rank == 3 else 0
    config.task.anchor_row = 1  # the context's last row
    config.task.border = "mirror"  # of the context beyond the grid, or zero
    config.task.objective = "info_nce"  # or binary, the original code's
    config.task.temperature = 0.1
    config.task.code = 128  # per patch (paper: 1024)
    config.task.context = 128  # of the recurrent network (original: 256)
    config.task.intensity = 0.2  # gain and shift of each patch, in units of the image's deviation
    config.task.flip_rows = False  # each patch on its own along the predicted axis: a fault
    if variant:
        config.task.code = 1024
        config.task.context = 256
        config.task.intensity = 0.0
    if variant == "paper":
        # "Overlapping" (section 3.1), by half as in the code's 2D grid.
        config.task.per_side = 5
        config.task.overlap = side // 6
        config.task.jitter = 0
    if variant == "original":
        config.task.objective = "binary"
        config.task.jitter = max(side // 4 // 8, 1) if rank == 3 else max(side // 3 // 12, 1)
        config.task.flip_rows = rank == 3
        config.task.border = "mirror" if rank == 3 else "zero"
    return config
