"""Segmentation in 2D, on the slices of volumes, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/segment2d.py[:DATASET]
    [--config.init.encoder=RUN --config.transfer.mode=finetune] [--config.data.label_fraction=0.1]
"""

import ml_collections

from configs import segment3d


def get_config(arg: str = "phantom_brain") -> ml_collections.ConfigDict:
    return segment3d.configure(arg, rank=2)
