"""Exemplar in 3D.

python -m ssl3d.main --config=configs/exemplar3d.py
"""

import ml_collections

from configs import default


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, variant = default.get_config("exemplar", rank, arg)
    config.task.objective = "margin"  # or original, with three heads
    config.task.margin = 1.0  # paper, equation 3
    config.task.code = 128  # of the embedding (paper: 1024)
    config.task.pool = 32  # volumes among which validation looks for the right one
    config.task.coarsen = 1 if variant else default.coarsening(config)
    # Probabilities of the transformations (paper, appendix A: 0.5, 0.5 and 0.2).
    config.task.flip = 0.5
    config.task.turn = 0.5
    config.task.zoom = 0.2
    config.task.zoom_amount = 0.2  # factors in 1 ± this
    config.task.intensity = 0.9  # of the random monotone change of intensities
    if variant:
        config.task.code = 1024
        config.task.intensity = 0.25  # brightness and contrast alone
    if variant == "original":
        config.task.objective = "original"
        config.task.zoom = 0.15
        config.head.hidden = ()
        config.head.batch_norm = False
    return config
