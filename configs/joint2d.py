"""Several proxy tasks on one encoder in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/joint2d.py

Built-in fundus, one CPU core: 100 s, accuracy of rpl 0.607 (chance 0.125).
"""

from ssl3d.bounds import Config
from ssl3d.configs import joint3d


def get_config(arg: str = "phantom") -> Config:
    return joint3d.configure(arg, rank=2)
