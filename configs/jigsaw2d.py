"""Jigsaw in 2D: 9 patches, 100 permutations, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/jigsaw2d.py
"""

import ml_collections

from configs import jigsaw3d


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return jigsaw3d.configure(arg, rank=2)
