"""Segmentation in 3D, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/segment3d.py[:DATASET]
    [--config.init.encoder=RUN --config.transfer.mode=finetune] [--config.data.label_fraction=0.1]
"""

import ml_collections

from configs import default

VARIANTS = ("",)


def get_config(arg: str = "phantom") -> ml_collections.ConfigDict:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> ml_collections.ConfigDict:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("segmentation", rank, arg, VARIANTS)
    default.downstream(config)
    del config.head  # the decoder takes its place
    if rank == 2:
        config.validation.repeats = 8  # slices of each validation volume
    # Probability that a crop is drawn around a labelled voxel.
    config.task.foreground = config.task.get("foreground", 0.5)
    config.task.deep = 0  # coarser resolutions of the decoder that are supervised too
    # Overlapping regions with a sigmoid each, outermost first, as sets of class indices; none:
    # a softmax over the classes. BraTS's: ((1, 2, 3), (1, 3), (3,)).
    config.task.regions = ()
    config.predict.overlap = 0.5  # of neighbouring windows, as a share of their side
    config.predict.batch = 4  # windows at once
    # Average over images mirrored along augment.flip_axes, unless training had none (flip=0).
    config.predict.mirror = True
    return config
