"""Exemplar in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/exemplar2d.py

Built-in fundus, two CPU cores: about 4 minutes, the right one among 32 pictures in 0.59 of the
cases (chance 0.031).
"""

from configs import exemplar3d
from ssl3d.bounds import Config


def get_config(arg: str = "phantom") -> Config:
    return exemplar3d.configure(arg, rank=2)
