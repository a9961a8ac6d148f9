"""Exemplar in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/exemplar2d.py
"""

import ml_collections

from configs import exemplar3d


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return exemplar3d.configure(arg, rank=2)
