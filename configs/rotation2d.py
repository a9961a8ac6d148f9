"""Rotation in 2D: 4 classes, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/rotation2d.py
"""

import ml_collections

from configs import rotation3d


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return rotation3d.configure(arg, rank=2)
