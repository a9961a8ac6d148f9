"""Segmentation in 3D, from scratch or from a pretrained encoder.

python -m ssl3d.main --config=configs/segment3d.py[:DATASET]
    [--config.init.encoder=RUN] [--config.data.label_fraction=0.1]

Built-in brain, from scratch, one CPU core: 150 s, mean Dice 0.902.
"""

from ssl3d.bounds import PROBABILITY, SHARE, Config, at_least, bounded
from ssl3d.configs import default

# Share of crops near a labelled voxel, by phantom. Every second random crop misses the abdomen's
# tumour of some 80 voxels.
FOREGROUND = {"abdomen": 0.8}


def get_config(arg: str = "phantom") -> Config:
    return configure(arg, rank=3)


def configure(arg: str, rank: int) -> Config:
    """The task's settings for either rank; see `default.get_config`."""
    config, _ = default.get_config("segmentation", rank, arg, kind="label_map", variants=("",))
    default.downstream(config)
    del config.head  # the decoder replaces it
    # Whether the pretraining run's decoder is used too, but for its last projection.
    config.transfer.decoder = False
    if rank == 2:
        config.validation.repeats = 8  # slices of each validation volume
    # Probability that a crop is centred near a labelled voxel.
    foreground = FOREGROUND.get(config.data.phantom.kind, 0.5)
    config.task.foreground = bounded(foreground, PROBABILITY)
    # Coarser resolutions of the decoder that are supervised too.
    config.task.deep = bounded(0, at_least(0))
    # Overlapping regions with a sigmoid each, outermost first, as sets of class indices; none:
    # a softmax over the classes. BraTS's: ((1, 2, 3), (1, 3), (3,)).
    config.task.regions = ()
    # Of neighbouring windows, as a share of their side.
    config.predict.overlap = bounded(0.5, SHARE)
    config.predict.batch = bounded(4, at_least(1))  # windows at once
    # Average over images mirrored along augment.flip_axes, unless training had none (flip=0).
    config.predict.mirror = True
    return config
