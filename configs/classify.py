"""Classification of whole images, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/classify.py[:DATASET[,volumes]]
    [--config.init.encoder=RUN --config.transfer.mode=finetune] [--config.data.label_fraction=0.1]

Pictures, or with `volumes` volumes.
"""

import ml_collections

from configs import default

VARIANTS = ("", "volumes")


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    rank = 3 if arg.endswith(",volumes") else 2
    config, _ = default.get_config("classification", rank, arg, VARIANTS)
    default.downstream(config)
    config.augment.flip = 0.5  # a grade is the same in the mirror
    config.task.head = "softmax"  # or ordinal: is each grade but the first reached?
    config.task.class_weights = "none"  # or balanced: inverse to the training cases of a class
    config.predict.batch = 16  # images at once
    config.predict.mirror = False  # average over mirrored images, as in configs/segment.py
    return config
