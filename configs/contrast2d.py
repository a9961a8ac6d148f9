"""Contrast in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/contrast2d.py

Built-in fundus, one CPU core: 61 s, the right one among 32 in a share of 0.578 (chance 0.031).
"""

from ssl3d.bounds import Config
from ssl3d.configs import contrast3d


def get_config(arg: str = "phantom") -> Config:
    return contrast3d.configure(arg, rank=2)
