"""Every key of a config, explained. The presets of `datasets.py` change the sizes.

The keys `config.task.*` are each task's own and are explained in its config file, for both ranks:
contrast3d.py, cpc3d.py, exemplar3d.py, jigsaw3d.py, joint3d.py, mae3d.py, rotation3d.py, rpl3d.py,
segment3d.py and classify2d.py.
`python -m ssl3d.main --config=FILE --print_config` prints all keys with their values.

`bounded(VALUE, BOUND)` sets VALUE and refuses overrides outside BOUND. Conditions between keys are
in `ssl3d.training.config_checks`.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ssl3d.bounds import (
    COUNTS,
    NONZERO_SHARE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    Config,
    at_least,
    bounded,
    derived,
    one_of,
)
from ssl3d.configs import datasets
from ssl3d.errors import UserError
from ssl3d.training import sizes as data_sizes

# What the published settings have in common, by variant and rank: "paper" follows the paper's
# text (appendix A), "original" the released code, faults included.
_ORIGINAL = {
    "encoder.norm": "batch",
    "head.hidden": (2048, 1024),
    "head.batch_norm": True,
    "head.dropout": 0.5,
    "head.pool": "max",
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 1e9,  # no clipping
}
PUBLISHED: dict[str, datasets.Ranks] = {
    "paper": {3: {"optimizer.learning_rate": 1e-3}, 2: {"optimizer.learning_rate": 5e-4}},
    "original": {
        3: {**_ORIGINAL, "optimizer.learning_rate": 1e-4},
        2: {**_ORIGINAL, "optimizer.learning_rate": 1e-5},
    },
}
VARIANTS = ("", *PUBLISHED)


def get_config(
    task: str,
    rank: int,
    arg: str,
    *,
    kind: str,
    sizes: Mapping[str, datasets.Ranks] | None = None,
    variants: tuple[str, ...] = VARIANTS,
) -> tuple[Config, str]:
    """The config of a task on a data set, before the task's own keys are set.

    Args:
      task: a file of ssl3d/tasks/, or the module of a task elsewhere, e.g. "my_package.my_task".
      rank: 2 for pictures or slices, 3 for volumes.
      arg: DATASET[,VARIANT], what follows the colon of --config=configs/rpl3d.py:...
      kind: "patches", "whole", "label_map" or "grade"; see `datasets`.
      sizes: what the task changes in the presets, by entry of `datasets.PRESETS` and rank.
      variants: those of the task; ("",) for none.

    Returns:
      The config and the variant: "" the corrected task, "paper" and "original" as published.

    Raises:
      UserError: no such preset, kind or variant.
    """
    preset, _, variant = arg.partition(",")
    if variant not in variants:
        choices = " or ".join(variants[1:])
        hint = f"choose {choices}" if choices else "this task has no variants"
        raise UserError(f"--config=...:{arg}: variant {variant!r}; {hint}")
    entry = datasets.find(preset, kind, rank)

    config = Config()
    # The run's name, and its folder under runs/ unless --workdir is given.
    config.name = f"{task}{rank}d_{preset}" + (f"_{variant}" if variant else "")
    config.rank = rank
    config.seed = bounded(0, at_least(0))
    config.steps = bounded(1000, at_least(1))  # optimiser steps of the whole run
    # Volumes (or slices, pictures) per step, over all devices; `auto` on the command line takes the
    # next that divides evenly over them.
    config.batch_size = bounded(8, at_least(1))
    config.log_every = bounded(20, at_least(1))  # steps between two lines of metrics
    config.validate_every = bounded(200, at_least(1))  # steps between two validations
    config.checkpoint_every = bounded(200, at_least(1))  # steps between two checkpoints
    # Steps between two probes with a few labels; 0: none.
    config.probe_every = bounded(derived(config, _quarter_of_the_run), at_least(0))

    config.log = Config()
    # Steps between two pictures of what the network is shown, for TensorBoard; 0: none.
    config.log.pictures_every = bounded(5000, at_least(0))
    # Track the run elsewhere too: a project of Weights & Biases, an experiment of MLflow.
    config.log.wandb = ""
    config.log.mlflow = ""

    config.task = Config()
    config.task.name = task

    config.data = Config()
    config.data.preset = preset
    config.data.path = ""  # folder of the prepared data set
    config.data.crop = (64,) * rank  # voxels that a task sees of an image
    # Share of the images of a proxy task that must hold the crop: it shrinks until they do, and
    # images that are smaller still are left out.
    config.data.coverage = bounded(0.95, NONZERO_SHARE)
    config.data.margin = bounded(0, at_least(0))  # voxels on every side outside all crops
    config.data.slice_axis = 2  # of a volume, for 2D tasks: 2 axial, 1 coronal, 0 sagittal
    config.data.train_splits = ("train", "unlabelled")
    # Reader threads; their number does not change the order of the data.
    config.data.threads = bounded(2, at_least(1))
    # A built-in data set, generated on first use.
    config.data.phantom = Config()
    config.data.phantom.kind = ""  # brain, abdomen or fundus; empty: the data set is on disk
    config.data.phantom.shape = (64,) * rank  # voxels
    config.data.phantom.train = 96  # cases
    config.data.phantom.val = 32
    config.data.phantom.test = 32
    config.data.phantom.seed = 0

    config.encoder = Config()
    # resunet: the paper's residual levels; unet: plain levels; densenet121: the paper's in 2D;
    # resenc: nnU-Net's, with norm=instance, width=32 and depth=6 that of its presets M, L and XL.
    config.encoder.kind = "resunet"
    # Channels of the first level, doubled with each (paper: 32); densenet121: the growth rate.
    config.encoder.width = 32
    # Levels including the bottleneck (paper: 5); densenet121: the stem and its blocks, 5 for all.
    config.encoder.depth = 5
    config.encoder.norm = "group"  # or instance, batch
    config.encoder.activation_first = False  # norm after the ReLU, as in the original code
    config.encoder.dropout = 0.0
    config.encoder.final_pool = "none"  # or max, as in the original code
    # resenc: the most channels of a level, 0 for nnU-Net's 320 in 3D and 512 in 2D; then for every
    # level its residual blocks, and per axis its stride (1, 2) and its kernel (1, 3). () for
    # nnU-Net's 1, 3, 4, 6, 6 ... blocks, strides of 2 after the first level and kernels of 3.
    config.encoder.max_width = 0
    config.encoder.blocks = ()
    config.encoder.strides = ()
    config.encoder.kernels = ()
    config.encoder.dtype = "float32"  # of the computation; bfloat16 pays on accelerators
    # Keep less for the backward pass and compute it again, where memory is short.
    config.encoder.remat = False

    config.head = Config()
    # Channels of the hidden layers (paper, appendix A: one).
    config.head.hidden = bounded((256,), COUNTS)
    config.head.batch_norm = False
    config.head.dropout = bounded(0.0, SHARE)
    config.head.pool = bounded("mean", one_of("mean", "max"))  # over the bottleneck

    config.optimizer = Config()
    # The peak (paper: 1e-3 in 3D, 5e-4 in 2D).
    config.optimizer.learning_rate = bounded(1e-3, POSITIVE)
    config.optimizer.warmup_steps = bounded(50, at_least(0))
    config.optimizer.weight_decay = bounded(1e-4, at_least(0))
    config.optimizer.clip_norm = bounded(1.0, POSITIVE)  # of the whole gradient
    # Decay of the averaged parameters, which are then evaluated and exported; 0: no averaging.
    config.optimizer.ema = bounded(0.0, SHARE)
    config.optimizer.accumulate = bounded(1, at_least(1))  # micro-batches per step

    config.validation = Config()
    config.validation.repeats = bounded(2, at_least(1))  # samples of each validation case
    # Validation cases that are scored, the first in their seeded order.
    config.validation.cases = bounded(256, at_least(1))

    # While a proxy task trains, a readout in closed form is fitted to a few labels and scored.
    config.probe = Config()
    # Cases to fit it to, and as many of the validation split to score it on.
    config.probe.cases = bounded(8 if rank == 3 else 32, at_least(1))
    config.probe.data = ""  # another prepared data set, with labels

    # A run, finished or not, or its encoder/: its encoder replaces config.encoder, and training
    # starts from its weights, of proxy tasks too.
    config.init = Config()
    config.init.encoder = ""

    # What `ssl3d.plan` assumes of images that are not prepared yet.
    config.plan = Config()
    config.plan.channels = bounded(1, at_least(1))
    config.plan.classes = bounded(2, at_least(1))  # the background among them

    # On GPUs, convolutions with channels last (NDHWC) for cuDNN too, in training, prediction and
    # probes; without effect elsewhere.
    config.xla = Config()
    config.xla.channels_last = False

    config.mesh = Config()
    # Devices that share an example: its volume, or its patches.
    config.mesh.space = bounded(1, at_least(1))

    _set(config, datasets.settings(entry, kind, rank))
    _set(config, (sizes or {}).get(entry, {}).get(rank, {}))
    if variant:
        _set(config, PUBLISHED[variant][rank])
        _set(config, datasets.PRESETS[entry].encoders[rank].get(variant, {}))
    if datasets.PRESETS[entry].from_data:
        data_sizes.follow_data(config, kind, given=datasets.PRESETS[entry].data)
    return config, variant


def downstream(config: Config) -> None:
    """Adds the keys that downstream tasks have beside those of the proxy tasks."""
    config.data.train_splits = ("train",)
    del config.probe_every, config.probe  # a validation scores the labels
    del config.data.coverage  # the mirror image continues an image smaller than the crop
    # Share of the training subjects whose labels are used. Larger shares contain the smaller ones.
    config.data.label_fraction = bounded(1.0, NONZERO_SHARE)
    config.data.label_seed = bounded(0, at_least(0))  # of their order; 0: the manifest's
    config.validation.repeats = 1

    config.transfer = Config()
    # What becomes of the weights of config.init.encoder: they are trained too (finetune, where one
    # is given), kept as they are (frozen) or not used (random).
    config.transfer.mode = derived(config, _transfer_mode)
    # finetune: steps before the encoder is trained too.
    config.transfer.warmup_steps = bounded(0, at_least(0))

    # Augmentation of every training example, on the device.
    config.augment = Config()
    # Probability of a mirror image, for each of these axes of the network's input: 0 unless the
    # preset knows axes on which it is as likely as the image, see `datasets.Preset.augment`. The
    # first axis of a volume and of its axial and coronal slices is left-right.
    config.augment.flip = bounded(0.0, PROBABILITY)
    config.augment.flip_axes = tuple(range(config.rank))
    config.augment.spatial = bounded(0.5, PROBABILITY)  # of a rotation and scaling
    config.augment.rotate = bounded(15.0, at_least(0))  # degrees, the most about each axis
    config.augment.zoom = bounded(0.15, SHARE)  # factors in 1 ± this
    config.augment.intensity = bounded(0.2, PROBABILITY)  # of a random monotone intensity change
    # Largest deviation of the Gaussian noise, in units of the image's deviation.
    config.augment.noise = bounded(0.05, at_least(0))
    augmentation = preset_of(config).augment
    config.augment.update(augmentation)
    config.augment.flip = derived(config, functools.partial(_flip, dict(augmentation)))

    config.predict = Config()


def _transfer_mode(config: Config) -> str:
    return "finetune" if config.init.encoder else "random"


def _quarter_of_the_run(config: Config) -> int:
    """At most 5000 steps: a long run is watched more closely, at a smaller share of its time."""
    return min(max(config.steps // 4, 1), 5000)


def preset_of(config: Config) -> datasets.Preset:
    """The entry of the config's data set."""
    name = config.data.preset
    entry = name if name in datasets.PRESETS else f"phantom_{config.data.phantom.kind}"
    return datasets.PRESETS[entry]


def _flip(augmentation: datasets.Settings, config: Config) -> float:
    """The preset's; 0 for slices without the left-right axis that it names."""
    sagittal = config.rank == 2 and config.data.slice_axis == 0
    if sagittal and augmentation.get("flip_axes") == (0,):
        return 0.0
    return augmentation.get("flip", 0.0)


def _set(config: Config, settings: datasets.Settings) -> None:
    """Sets values by dotted key. Raises `KeyError` for a key that does not exist yet."""
    config.lock()
    config.update_from_flattened_dict(dict(settings))
    config.unlock()


def jitter(config: Config, variant: str) -> Any:
    """Voxels of play of a patch in its cell, derived from the crop and `task.per_side`.

    A quarter of the cell, at most 8: with less, neighbours in small cells would touch. The
    published variants: 3 of 42 voxels; the released code in 2D: 8 of 74 pixels, 4 of 42.
    """
    if variant == "original" and config.rank == 2:
        return derived(config, _original_jitter_of_pictures)
    return derived(config, _published_jitter if variant else _quarter_of_a_cell)


def _cell(config: Config) -> int:
    return min(config.data.crop) // config.task.per_side


def _quarter_of_a_cell(config: Config) -> int:
    return max(min(_cell(config) // 4, 8), 1)


def _original_jitter_of_pictures(config: Config) -> int:
    return max(_cell(config) * 8 // 74, 1)


def _published_jitter(config: Config) -> int:
    return max(round(_cell(config) * 3 / 42), 1)


def coarsening(config: Config) -> int:
    """Voxels per side that tasks on a whole crop average into one: 2 for 3D phantoms, else 1.

    Half the resolution still shows where structures lie, and a step on two CPU cores then holds
    four times the volumes. These tasks need volumes more than detail.
    """
    phantom = config.data.phantom
    return 2 if config.rank == 3 and phantom.kind and len(phantom.shape) == 3 else 1
