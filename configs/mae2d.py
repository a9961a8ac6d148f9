"""Masked autoencoder in 2D, on pictures or on slices of volumes.

python -m ssl3d.main --config=configs/mae2d.py
"""

from configs import mae3d
from ssl3d.bounds import Config


def get_config(arg: str = "phantom") -> Config:
    return mae3d.configure(arg, rank=2)
