"""Classification of volumes, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/classify3d.py:folder --config.data.path=DIR
    [--config.init.encoder=RUN] [--config.data.label_fraction=0.1]
"""

from ssl3d.bounds import Config
from ssl3d.configs import classify2d


def get_config(arg: str = "folder") -> Config:
    return classify2d.configure(arg, rank=3)
