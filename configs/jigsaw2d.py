"""Jigsaw in 2D: 9 patches, 100 permutations, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/jigsaw2d.py

Built-in fundus, one CPU core: 40 s, accuracy 0.982 (chance 0.010).
"""

from ssl3d.bounds import Config
from ssl3d.configs import jigsaw3d


def get_config(arg: str = "phantom") -> Config:
    return jigsaw3d.configure(arg, rank=2)
