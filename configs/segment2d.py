"""Segmentation in 2D, on the slices of volumes, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/segment2d.py[:DATASET]
    [--config.init.encoder=RUN] [--config.data.label_fraction=0.1]
"""

from ssl3d.bounds import Config
from ssl3d.configs import segment3d


def get_config(arg: str = "phantom_brain") -> Config:
    return segment3d.configure(arg, rank=2)
