"""Contrastive predictive coding in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/cpc2d.py
"""

import ml_collections

from configs import cpc3d


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return cpc3d.configure(arg, rank=2)
