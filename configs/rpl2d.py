"""Relative patch location in 2D: 8 classes, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/rpl2d.py

Built-in fundus, one CPU core: 44 s, accuracy 0.818 (chance 0.125).
"""

from ssl3d.bounds import Config
from ssl3d.configs import rpl3d


def get_config(arg: str = "phantom") -> Config:
    return rpl3d.configure(arg, rank=2)
