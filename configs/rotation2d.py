"""Rotation in 2D: 4 classes, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/rotation2d.py

Built-in fundus, one CPU core: 52 s, accuracy 0.930 (chance 0.250).
"""

from ssl3d.bounds import Config
from ssl3d.configs import rotation3d


def get_config(arg: str = "phantom") -> Config:
    return rotation3d.configure(arg, rank=2)
