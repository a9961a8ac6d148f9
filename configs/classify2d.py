"""Classification of pictures, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/classify2d.py[:DATASET]
    [--config.init.encoder=RUN] [--config.data.label_fraction=0.1]

Built-in fundus, from scratch, one CPU core: 137 s, quadratic kappa 0.899.
"""

from ssl3d.bounds import Config, at_least, bounded
from ssl3d.configs import default


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=2)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("classification", rank, arg, kind="grade", variants=("",))
    default.downstream(config)
    config.task.head = "softmax"  # or ordinal: one output per grade but the first, is it reached?
    config.task.class_weights = "none"  # or balanced: inverse to a class's training cases
    config.predict.batch = bounded(16, at_least(1))  # images at once
    config.predict.mirror = False  # average over mirrored images, as in configs/segment3d.py
    return config
