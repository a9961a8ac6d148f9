"""Masked autoencoder in 3D: reconstruct the masked blocks of a volume.

python -m ssl3d.main --config=configs/mae3d.py

Built-in brain, one CPU core: 143 s, explained 0.566 (filling 0.431).
"""

from ssl3d.bounds import SHARE, Config, at_least, bounded, derived
from ssl3d.configs import datasets, default

# Every voxel is a target: at equal voxels per second, more and smaller steps reach more.
_STEPS: datasets.Settings = {
    "optimizer.learning_rate": 4e-3,
    "steps": 400,
    "validate_every": 100,
    "checkpoint_every": 100,
}
_VOLUMES: datasets.Ranks = {
    3: {"data.crop": (48, 48, 48), "encoder.depth": 4, "batch_size": 2, **_STEPS},
    2: {"batch_size": 8, **_STEPS},
}
SIZES: dict[str, datasets.Ranks] = {
    "phantom_brain": _VOLUMES,
    "phantom_abdomen": _VOLUMES,
    "phantom_fundus": datasets.both_ranks({"batch_size": 8, **_STEPS}),
    # A decoder at full resolution needs more memory than the encoder.
    **{name: {3: {"batch_size": 4}} for name in datasets.PAPER_SIZED},
    # The preset's encoder has no level at full resolution.
    "retina": {3: {"batch_size": 4}, 2: {"encoder.kind": "resunet"}},
}


def _eighth_of_the_crop(config: Config) -> int:
    return max(min(config.data.crop) // 8, 1)


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("mae", rank, arg, kind="whole", sizes=SIZES, variants=("",))
    del config.head  # the decoder replaces it
    # Share of the blocks that are masked (nnssl, in 3D: 0.75; SparK, in 2D: 0.6).
    config.task.ratio = bounded(0.75 if rank == 3 else 0.6, SHARE)
    # Voxels per side of a block (nnssl: 16 of 160).
    config.task.block = bounded(derived(config, _eighth_of_the_crop), at_least(1))
    # Whether targets are normalised per block, to mean 0 and variance 1.
    config.task.normalise = False
    return config
