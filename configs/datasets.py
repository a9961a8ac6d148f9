"""The data sets' presets: where they are, and the sizes that suit them.

A preset sets `config.data`, the encoder's width and depth, batch and steps. The phantom ones and
the hippocampus run on two CPU cores in minutes; the others are the paper's: volumes of 128^3,
pictures of 224^2, five levels from 32 channels.
"""

import ml_collections

from ssl3d.errors import UserError

# Tasks that look at patches of an image one by one, and not at a crop as a whole.
PATCH_TASKS = ("cpc", "jigsaw", "rpl")

# Of `config.augment`, for minutes of training, in which a small net fits its own training cases no
# better than the others.
MILD = {"spatial": 0.3, "intensity": 0.1, "noise": 0.02}

# What is known of the images for `config.augment`. Flips along the axes on which a mirror image is
# as likely as the image: left-right where an organ has a twin or a disease either side, both of a
# picture of an eye (the left one is the right one's mirror image, and lesions lie anywhere).
AUGMENT = {
    "phantom_brain": {"flip": 0.5, "flip_axes": (0,)},
    "phantom_fundus": {"flip": 0.5, "flip_axes": (0, 1)},
    "hippocampus": {"flip": 0.5, "flip_axes": (0,), **MILD},
    "brats": {"flip": 0.5, "flip_axes": (0,)},
    "retina": {"flip": 0.5, "flip_axes": (0, 1)},
}


def augmentation(config: ml_collections.ConfigDict) -> dict[str, object]:
    """The settings of `AUGMENT` for the config's data; none where nothing is known."""
    kind = config.data.phantom.kind
    return AUGMENT.get(f"phantom_{kind}" if kind else config.data.preset, {})


def apply(config: ml_collections.ConfigDict, preset: str) -> None:
    """Fills in the preset. Raises `UserError` for a name that there is not."""
    if preset not in PRESETS:
        raise UserError(f"--config=...:{preset}: no such data set; choose {', '.join(PRESETS)}")
    PRESETS[preset](config)


def _choose(config: ml_collections.ConfigDict, **by_task: tuple[int, ...]) -> None:
    """Sets the crop by the task's name; the key `patches` serves all tasks on patches."""
    kind = "patches" if config.task.name in PATCH_TASKS else "whole"
    config.data.crop = by_task[config.task.name if config.task.name in by_task else kind]


def _two_cores(config: ml_collections.ConfigDict, depth: int) -> None:
    """A net and a schedule for two CPU cores and a few minutes."""
    config.encoder.width = 8 if config.rank == 3 else 16
    config.encoder.depth = depth
    config.head.hidden = (128,)
    config.optimizer.learning_rate = 2e-3
    config.batch_size = 8 if config.rank == 3 else 16
    config.steps = 200
    config.validate_every = 50
    config.checkpoint_every = 50


def _phantom_volume(config: ml_collections.ConfigDict, kind: str) -> None:
    config.data.path = f"data/phantom_{kind}"
    config.data.phantom.kind = kind
    config.data.phantom.shape = (64, 64, 64)  # 3 mm (brain) or about 4.7 mm (abdomen)
    # A whole crop needs a bottleneck of few voxels, to see how its parts lie to each other.
    whole = config.task.name not in PATCH_TASKS
    _two_cores(config, depth=(5 if whole else 4) if config.rank == 3 else (4 if whole else 3))
    if config.task.name == "segmentation":
        config.data.crop = (48,) * 3 if config.rank == 3 else (64,) * 2
        config.encoder.depth = 4
        config.batch_size = 2 if config.rank == 3 else 16
        config.optimizer.learning_rate = 4e-3
        config.steps = 350
        if kind == "abdomen":  # of which every second crop lacks the tumour, some 80 voxels
            config.task.foreground = 0.8
            config.steps = 600
    elif config.rank == 3:
        # CPC stays inside the body: patches of nothing but air cannot be told apart.
        config.data.margin = 6 if config.task.name == "cpc" else 0
        _choose(
            config,
            patches=(54, 54, 54),
            cpc=(48, 48, 48),
            whole=(56, 56, 56),
            exemplar=(48, 48, 48),
        )
        config.batch_size = {"jigsaw": 4, "rotation": 24, "exemplar": 24}.get(config.task.name, 8)
        # Learned soonest, or the longest steps: all end well within five minutes.
        config.steps = {"jigsaw": 120, "rotation": 100, "exemplar": 180}.get(
            config.task.name, config.steps
        )
    else:
        _choose(config, patches=(60, 60), whole=(56, 56))


def phantom(config: ml_collections.ConfigDict) -> None:
    """The brain for 3D tasks, the fundus for 2D ones."""
    if config.rank == 3:
        phantom_brain(config)
    else:
        phantom_fundus(config)


def phantom_brain(config: ml_collections.ConfigDict) -> None:
    """Head MR in four contrasts; its axial slices for 2D tasks."""
    _phantom_volume(config, "brain")


def phantom_abdomen(config: ml_collections.ConfigDict) -> None:
    """Abdominal CT; its axial slices for 2D tasks."""
    _phantom_volume(config, "abdomen")


def phantom_fundus(config: ml_collections.ConfigDict) -> None:
    """Retinal photographs. Tasks on patches see only the square inside the round picture."""
    config.data.path = "data/phantom_fundus"
    config.data.phantom.kind = "fundus"
    config.data.phantom.shape = (160, 160)
    config.data.phantom.train = 256
    config.data.phantom.val = 64
    config.data.phantom.test = 64
    if config.task.name in PATCH_TASKS:
        _two_cores(config, depth=4)
    else:
        # Six levels, for the bottleneck to see how disc, macula and vessels lie to each other.
        _two_cores(config, depth=6)
        config.encoder.width = 8
    if config.task.name == "cpc":
        config.batch_size = 8  # of 25 overlapping patches each
    if config.task.name in ("rpl", "classification"):
        config.steps = 400  # short ones: four queries of each picture, or one grade
    # The grade is that of the worst place, wherever it is.
    _round_picture(config, side=160, whole=160 if config.task.name == "classification" else 128)


def _round_picture(config: ml_collections.ConfigDict, side: int, whole: int) -> None:
    """Keeps the rim of the round picture, which would tell where a patch lies, out of patches."""
    inscribed = int(0.66 * side)  # of a circle nearly as wide as the picture
    if config.task.name in PATCH_TASKS:
        config.data.margin = (side - inscribed) // 2
        config.data.crop = (inscribed - 6,) * 2  # and six pixels of play
    else:
        config.data.crop = (whole,) * 2


def hippocampus(config: ml_collections.ConfigDict) -> None:
    """Task04 of the Medical Segmentation Decathlon: MR, about 35 x 50 x 36 voxels of 1 mm."""
    _two_cores(config, depth=3 if config.task.name in PATCH_TASKS else 4)
    config.batch_size = 16
    if config.rank == 3:
        _choose(config, patches=(33, 45, 33), whole=(32, 32, 32), cpc=(36, 48, 36))
    else:
        _choose(config, patches=(33, 45), whole=(32, 32), cpc=(35, 45))
    if config.task.name == "segmentation":
        # Most of a volume: of the same voxels a second, more and smaller steps reach more.
        config.data.crop = (32, 40, 32)[: config.rank]
        config.encoder.width = 16
        config.batch_size = 2 if config.rank == 3 else 32
        config.optimizer.learning_rate = 5e-3
        config.steps = 2400 if config.rank == 3 else 1000
        config.log_every = 50
        config.validate_every = 300
        config.checkpoint_every = 300


def _paper(config: ml_collections.ConfigDict, side: int) -> None:
    config.data.crop = (side,) * config.rank
    config.data.threads = 16
    config.encoder.width = 32
    config.encoder.depth = 5
    config.encoder.dtype = "bfloat16"
    config.optimizer.warmup_steps = 1000
    config.steps = 100_000
    config.log_every = 100
    config.validate_every = 2000
    config.checkpoint_every = 2000
    batch = {"rpl": 32, "segmentation": 2}  # the others 8 (reference code)
    config.batch_size = batch.get(config.task.name, 8) * (1 if config.rank == 3 else 4)


def ukb(config: ml_collections.ConfigDict) -> None:
    """UK Biobank brain MR: T1 and T2-FLAIR at 128^3 (paper, section 4.1)."""
    _paper(config, 128)


def brats(config: ml_collections.ConfigDict) -> None:
    """BraTS 2018: four contrasts at 128^3 (paper, section 4.1)."""
    _paper(config, 128)


def pancreas(config: ml_collections.ConfigDict) -> None:
    """Task07 of the Medical Segmentation Decathlon: CT at 128^3 (paper, section 4.2)."""
    _paper(config, 128)


def retina(config: ml_collections.ConfigDict) -> None:
    """Fundus photographs at 224^2, UK Biobank or APTOS 2019 (paper, section 4.3)."""
    _paper(config, 224)
    if config.rank == 2:
        config.encoder.kind = "densenet121"
        _round_picture(config, side=224, whole=224)


def folder(config: ml_collections.ConfigDict) -> None:
    """Any prepared data set: give --config.data.path, and --config.data.crop where 128 is wrong."""
    _paper(config, 128)


PRESETS = {
    function.__name__: function
    for function in (
        phantom,
        phantom_brain,
        phantom_abdomen,
        phantom_fundus,
        hippocampus,
        ukb,
        brats,
        pancreas,
        retina,
        folder,
    )
}
