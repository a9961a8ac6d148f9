"""Relative patch location in 2D: 8 classes, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/rpl2d.py
"""

import ml_collections

from configs import rpl3d


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return rpl3d.configure(arg, rank=2)
