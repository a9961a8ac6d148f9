"""Classification of pictures, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/classify2d.py[:DATASET]
    [--config.init.encoder=RUN --config.transfer.mode=finetune] [--config.data.label_fraction=0.1]
"""

import ml_collections

from configs import default

VARIANTS = ("",)


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=2)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("classification", rank, arg, VARIANTS)
    default.downstream(config)
    config.augment.flip = 0.5  # a grade is the same in the mirror
    config.task.head = "softmax"  # or ordinal: is each grade but the first reached?
    config.task.class_weights = "none"  # or balanced: inverse to the training cases of a class
    config.predict.batch = 16  # images at once
    config.predict.mirror = False  # average over mirrored images, as in configs/segment3d.py
    return config
