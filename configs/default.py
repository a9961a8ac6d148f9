"""Every key of a config, explained. The tasks' files and `datasets.py` fill in their own."""

import ml_collections

from configs import datasets
from ssl3d.errors import UserError

VARIANTS = ("", "paper", "original")


def get_config(
    task: str, rank: int, arg: str, variants: tuple[str, ...] = VARIANTS
) -> tuple[ml_collections.ConfigDict, str]:
    """The config of a task on a data set, before the task's own settings.

    Args:
      task: name of a file in ssl3d/tasks/.
      rank: 2 for pictures or slices, 3 for volumes.
      arg: DATASET[,VARIANT], what follows the colon of --config=configs/rpl3d.py:...
      variants: that there are.

    Returns:
      The config and the variant: "", the corrected task; "paper", as the paper's text says;
      "original", as the released code does, faults included.
    """
    preset, _, variant = arg.partition(",")
    if variant not in variants:
        choices = " or ".join(variants[1:])
        raise UserError(f"--config=...:{arg}: variant {variant!r}; choose {choices}")

    config = ml_collections.ConfigDict()
    # The run's name, and its folder under runs/ unless --workdir says otherwise.
    config.name = f"{task}{rank}d_{preset}" + (f"_{variant}" if variant else "")
    config.rank = rank
    config.seed = 0
    config.steps = 1000  # optimiser steps of the whole run
    config.batch_size = 8  # volumes (or slices, pictures) per step, over all devices
    config.log_every = 20  # steps between two lines of metrics
    config.validate_every = 200  # steps between two validations
    config.checkpoint_every = 200  # steps between two checkpoints

    config.task = ml_collections.ConfigDict({"name": task})

    config.data = ml_collections.ConfigDict()
    config.data.preset = preset
    config.data.path = ""  # folder of the prepared data set
    config.data.crop = (64,) * rank  # voxels, what a task sees of an image
    config.data.margin = 0  # voxels on every side that no crop touches
    config.data.slice_axis = 2  # of a volume, for 2D tasks: 2 axial, 1 coronal, 0 sagittal
    config.data.train_splits = ("train", "unlabelled")
    config.data.threads = 2  # that read and cut; does not change the data's order
    # A built-in data set, drawn on first use; no kind: the data set is on disk.
    config.data.phantom = ml_collections.ConfigDict(
        {"kind": "", "shape": (64,) * rank, "train": 96, "val": 32, "test": 32, "seed": 0}
    )

    config.encoder = ml_collections.ConfigDict()
    config.encoder.kind = "resunet"  # the paper's residual levels; unet: plain ones; densenet121
    # Channels of the first level, doubled with each (paper: 32); densenet121: the growth rate.
    config.encoder.width = 32
    # Levels including the bottleneck (paper: 5); densenet121: the stem and its blocks, 5 for all.
    config.encoder.depth = 5
    config.encoder.norm = "group"  # or instance, batch
    config.encoder.activation_first = False  # norm after the ReLU, as the original code has it
    config.encoder.dropout = 0.0
    config.encoder.final_pool = "none"  # or max, as the original code has it
    config.encoder.dtype = "float32"  # of the computation; bfloat16 pays on accelerators

    config.head = ml_collections.ConfigDict()
    config.head.hidden = (256,)  # one hidden layer (paper, appendix A)
    config.head.batch_norm = False
    config.head.dropout = 0.0
    config.head.pool = "mean"  # over the bottleneck, or max

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 1e-3  # peak (paper: 1e-3 in 3D, 5e-4 in 2D)
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0  # of the whole gradient
    config.optimizer.ema = 0.0  # decay of averaged parameters, which are then exported; 0: none
    config.optimizer.accumulate = 1  # micro-batches per step

    config.validation = ml_collections.ConfigDict()
    config.validation.repeats = 2  # draws of each validation case

    config.mesh = ml_collections.ConfigDict()
    config.mesh.space = 1  # devices that share one volume

    datasets.apply(config, preset)
    if variant == "paper":
        paper(config)
    if variant == "original":
        original(config)
    return config, variant


def downstream(config: ml_collections.ConfigDict) -> None:
    """What all downstream configs have beside the proxy tasks' keys."""
    config.data.train_splits = ("train",)
    config.data.label_fraction = 1.0  # of the training subjects whose labels are used; nested
    config.data.label_seed = 0  # of the order in which they are; 0: the manifest's
    config.validation.repeats = 1

    config.init = ml_collections.ConfigDict()
    config.init.encoder = ""  # a pretraining run, whose encoder takes the place of config.encoder
    config.transfer = ml_collections.ConfigDict()
    config.transfer.mode = "random"  # its weights are not used, or frozen, or finetune
    config.transfer.warmup_steps = 0  # of finetune: steps before the encoder learns too

    # On the device, of every training example.
    config.augment = ml_collections.ConfigDict()
    # Probability of a mirror image, for each of these axes of the network's input. The first one of
    # a volume and of its axial and coronal slices is left-right.
    config.augment.flip = 0.0
    config.augment.flip_axes = tuple(range(config.rank))
    config.augment.spatial = 0.5  # probability of a rotation and scaling
    config.augment.rotate = 15.0  # degrees, the most about each axis
    config.augment.zoom = 0.15  # factors in 1 ± this
    config.augment.intensity = 0.2  # of the random monotone change of intensities
    config.augment.noise = 0.05  # of Gaussian noise, the most, in units of the image's deviation
    config.augment.update(datasets.augmentation(config))

    config.predict = ml_collections.ConfigDict()


def paper(config: ml_collections.ConfigDict) -> None:
    """What the paper's text says of all tasks (appendix A): widths and learning rates."""
    if config.encoder.kind != "densenet121":
        config.encoder.kind = "resunet"
    config.encoder.width = 32
    config.optimizer.learning_rate = 1e-3 if config.rank == 3 else 5e-4


def original(config: ml_collections.ConfigDict) -> None:
    """What the released code does in all tasks: plain levels, norm after the ReLU, wide heads."""
    config.encoder.norm = "batch"
    if config.encoder.kind != "densenet121":
        config.encoder.kind = "unet"
        config.encoder.width = 16
        config.encoder.activation_first = True
        config.encoder.dropout = 0.5
        config.encoder.final_pool = "max"
    config.head.hidden = (2048, 1024)
    config.head.batch_norm = True
    config.head.dropout = 0.5
    config.head.pool = "max"
    config.optimizer.learning_rate = 1e-4 if config.rank == 3 else 1e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0


def jitter(config: ml_collections.ConfigDict, per_side: int, variant: str) -> int:
    """Voxels of play of a patch in its cell: a quarter of the cell, at most 8.

    Small cells need it for neighbours not to touch. The published variants: 3 of 42 voxels.
    """
    cell = min(config.data.crop) // per_side
    return max(round(cell * 3 / 42) if variant else min(cell // 4, 8), 1)


def coarsening(config: ml_collections.ConfigDict) -> int:
    """Voxels per side whose mean is one for tasks on a whole crop; the phantoms' 3D ones take 2.

    What lies where shows at half the resolution too, and a step of two CPU cores then holds four
    times the volumes, which these tasks need more than detail.
    """
    phantom = config.data.phantom
    return 2 if config.rank == 3 and phantom.kind and len(phantom.shape) == 3 else 1
