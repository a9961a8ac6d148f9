"""Exemplar in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/exemplar2d.py

Built-in fundus, one CPU core: 149 s, the right one among 32 in a share of 0.602 (chance 0.031).
"""

from ssl3d.bounds import Config
from ssl3d.configs import exemplar3d


def get_config(arg: str = "phantom") -> Config:
    return exemplar3d.configure(arg, rank=2)
