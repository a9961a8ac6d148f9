"""The presets: a table of sizes for every data set, with a row for each kind of task.

A task's config file states its kind, so that a new task gets sensible sizes without an entry here:

    patches     it looks at the patches of a crop one by one
    whole       it looks at a crop as a whole
    label_map   it labels every voxel
    grade       it grades an image

The phantoms and the hippocampus run on two CPU cores in minutes. The other presets are the
paper's: crops of 128^3 voxels or 224^2 pixels, five levels from 32 channels.

Settings are values by dotted key, e.g. {"encoder.depth": 4}; rows hold them by rank, 3 and 2.
docs/configs.md adds a preset without an edit here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ssl3d.errors import UserError

Settings = Mapping[str, Any]
Ranks = Mapping[int, Settings]

KINDS = ("patches", "whole", "label_map", "grade")

# Weaker augmentation, for minutes of training: a small network then fits its training cases no
# better than the others.
MILD = {"spatial": 0.3, "intensity": 0.1, "noise": 0.02}

# The published encoders, by variant.
UNETS = {
    "paper": {"encoder.kind": "resunet", "encoder.width": 32},
    "original": {
        "encoder.kind": "unet",
        "encoder.width": 16,
        "encoder.activation_first": True,
        "encoder.dropout": 0.5,
        "encoder.final_pool": "max",
    },
}


class Preset(NamedTuple):
    """The settings for one data set. Later fields override earlier ones.

    Attributes:
      about: the data set in one line.
      base: network, batch and schedule, by rank.
      data: where the images are and what they are, for both ranks.
      kinds: what each kind of task changes, by rank; a kind without a row takes that of "whole".
      augment: `config.augment` of downstream tasks. Flips only along axes on which the mirror image
        is as likely as the image: left-right where an organ has a twin or disease strikes either
        side, both axes of a fundus photograph (the left eye mirrors the right one, and lesions
        lie anywhere).
      encoders: the published encoders, by rank and variant.
      ordered: whether classes of whole images are grades, which have an order.
      from_data: whether crop, depth and batch follow from the data set, unless `data` has them;
        the values of `base` and `kinds` are then what a step costs at most.
    """

    about: str
    base: Ranks
    data: Mapping[str, Any] = {}
    kinds: Mapping[str, Ranks] = {}
    augment: Mapping[str, Any] = {}
    encoders: Mapping[int, Mapping[str, Settings]] = {3: UNETS, 2: UNETS}
    ordered: bool = True
    from_data: bool = False


def both_ranks(settings: Settings) -> Ranks:
    """A row of a picture preset. In 3D its 2D crop is refused, with a remedy."""
    return {3: settings, 2: settings}


def _minutes(width: int, batch_size: int) -> Settings:
    """A network and a schedule for minutes on two CPU cores."""
    return {
        "encoder.width": width,
        "head.hidden": (128,),
        "optimizer.learning_rate": 2e-3,
        "batch_size": batch_size,
        "steps": 200,
        "validate_every": 50,
        "checkpoint_every": 50,
    }


def _paper(crop: tuple[int, ...], batch_size: int) -> Settings:
    """The paper's network and schedule; the batch size is the reference code's."""
    return {
        "data.crop": crop,
        "data.threads": 16,
        "encoder.width": 32,
        "encoder.depth": 5,
        "encoder.dtype": "bfloat16",
        "optimizer.warmup_steps": 1000,
        "batch_size": batch_size,
        "steps": 100_000,
        "log_every": 100,
        "validate_every": 2000,
        "checkpoint_every": 2000,
    }


MINUTES = {3: _minutes(width=8, batch_size=8), 2: _minutes(width=16, batch_size=16)}
PAPER = {3: _paper((128, 128, 128), batch_size=8), 2: _paper((128, 128), batch_size=32)}
PAPER_224 = {3: _paper((224, 224, 224), batch_size=8), 2: _paper((224, 224), batch_size=32)}

PAPER_KINDS = {"label_map": {3: {"batch_size": 2}, 2: {"batch_size": 8}}}


def _volume_kinds(segmentation_steps: int) -> Mapping[str, Ranks]:
    """Of the built-in volumes.

    A whole crop needs a bottleneck of few voxels: there the network compares the places of its
    parts.
    """
    segmentation = {
        "encoder.depth": 4,
        "optimizer.learning_rate": 4e-3,
        "steps": segmentation_steps,
    }
    return {
        "patches": {
            3: {"data.crop": (54, 54, 54), "encoder.depth": 4},
            2: {"data.crop": (60, 60), "encoder.depth": 3},
        },
        "whole": {
            3: {"data.crop": (56, 56, 56), "encoder.depth": 5},
            2: {"data.crop": (56, 56), "encoder.depth": 4},
        },
        "label_map": {
            3: {"data.crop": (48, 48, 48), "batch_size": 2, **segmentation},
            2: {"data.crop": (64, 64), **segmentation},
        },
    }


_HIPPOCAMPI = {
    "encoder.width": 16,
    "encoder.depth": 4,
    "optimizer.learning_rate": 5e-3,
    "log_every": 50,
    "validate_every": 300,
    "checkpoint_every": 300,
}

PRESETS: dict[str, Preset] = {
    "phantom_brain": Preset(
        "built-in head MR in four contrasts, 64^3 voxels of 3 mm",
        MINUTES,
        {
            "data.path": "data/phantom_brain",
            "data.phantom.kind": "brain",
            "data.phantom.shape": (64, 64, 64),
        },
        _volume_kinds(segmentation_steps=350),
        {"flip": 0.5, "flip_axes": (0,)},
    ),
    "phantom_abdomen": Preset(
        "built-in abdominal CT, 64^3 voxels of about 4.7 mm",
        MINUTES,
        {
            "data.path": "data/phantom_abdomen",
            "data.phantom.kind": "abdomen",
            "data.phantom.shape": (64, 64, 64),
        },
        _volume_kinds(segmentation_steps=600),  # a tumour of some 80 voxels
    ),
    # Patches come from the square inside the round picture, with six pixels of play: the rim would
    # tell where they lie.
    "phantom_fundus": Preset(
        "built-in retinal photographs, 160^2 pixels",
        MINUTES,
        {
            "data.path": "data/phantom_fundus",
            "data.phantom.kind": "fundus",
            "data.phantom.shape": (160, 160),
            "data.phantom.train": 256,
            "data.phantom.val": 64,
            "data.phantom.test": 64,
        },
        {
            "patches": both_ranks({"data.crop": (99, 99), "data.margin": 27, "encoder.depth": 4}),
            # Six levels: the bottleneck compares the places of disc, macula and vessels.
            "whole": both_ranks({"data.crop": (128, 128), "encoder.width": 8, "encoder.depth": 6}),
            # The worst place makes the grade, wherever it lies: the crop is the whole picture.
            "grade": both_ranks(
                {
                    "data.crop": (160, 160),
                    "encoder.width": 8,
                    "encoder.depth": 6,
                    "steps": 400,  # short ones: one grade per picture
                }
            ),
        },
        {"flip": 0.5, "flip_axes": (0, 1)},
    ),
    "hippocampus": Preset(
        "Task04 of the Medical Segmentation Decathlon: MR, about 35 x 50 x 36 voxels of 1 mm",
        MINUTES,
        {"batch_size": 16, "plan.channels": 1, "plan.classes": 3},
        {
            "patches": {
                3: {"data.crop": (33, 45, 33), "encoder.depth": 3},
                2: {"data.crop": (33, 45), "encoder.depth": 3},
            },
            "whole": {
                3: {"data.crop": (32, 32, 32), "encoder.depth": 4},
                2: {"data.crop": (32, 32), "encoder.depth": 4},
            },
            # Most of a volume. At equal voxels per second, more and smaller steps reach more.
            "label_map": {
                3: {"data.crop": (32, 40, 32), "batch_size": 2, "steps": 2400, **_HIPPOCAMPI},
                2: {"data.crop": (32, 40), "batch_size": 32, "steps": 1000, **_HIPPOCAMPI},
            },
        },
        {"flip": 0.5, "flip_axes": (0,), **MILD},
    ),
    "ukb": Preset(
        "UK Biobank brain MR: T1 and T2-FLAIR (paper, section 4.1)",
        PAPER,
        {"plan.channels": 2, "plan.classes": 2},
        kinds=PAPER_KINDS,
    ),
    "brats": Preset(
        "BraTS 2018: four MR contrasts (paper, section 4.1)",
        PAPER,
        {"plan.channels": 4, "plan.classes": 4},
        kinds=PAPER_KINDS,
        augment={"flip": 0.5, "flip_axes": (0,)},
    ),
    "pancreas": Preset(
        "Task07 of the Medical Segmentation Decathlon: CT (paper, section 4.2)",
        PAPER,
        {"plan.channels": 1, "plan.classes": 3},
        kinds=PAPER_KINDS,
    ),
    "retina": Preset(
        "retinal photographs, UK Biobank or APTOS 2019 (paper, section 4.3)",
        {3: PAPER_224[3], 2: {**PAPER_224[2], "encoder.kind": "densenet121"}},
        {"plan.channels": 3, "plan.classes": 5},
        kinds=PAPER_KINDS
        # The square inside the circle, as above.
        | {"patches": {3: {}, 2: {"data.crop": (141, 141), "data.margin": 38}}},
        augment={"flip": 0.5, "flip_axes": (0, 1)},
        encoders={3: UNETS, 2: {}},  # the same network in every variant
    ),
    "folder": Preset(
        "any prepared data set; crop, depth and batch follow from its manifest",
        {3: PAPER[3], 2: PAPER_224[2]},
        kinds=PAPER_KINDS,
        ordered=False,
        from_data=True,
    ),
}

# The presets at the paper's sizes.
PAPER_SIZED = ("ukb", "brats", "pancreas", "retina", "folder")


def find(name: str, kind: str, rank: int) -> str:
    """The entry of `PRESETS` that a preset's name stands for.

    `phantom` is the built-in data set that suits the task: volumes for 3D tasks, pictures for 2D
    ones; for segmentation in 2D slices of the volumes, as pictures have no label maps.

    Raises:
      UserError: no such preset or kind.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind!r}: no such kind of task; choose {', '.join(KINDS)}")
    if name == "phantom":
        return "phantom_brain" if rank == 3 or kind == "label_map" else "phantom_fundus"
    if name not in PRESETS:
        choices = ", ".join(("phantom", *PRESETS))
        raise UserError(f"--config=...:{name}: no such data set; choose {choices}")
    return name


def settings(name: str, kind: str, rank: int) -> Settings:
    """All that an entry of `PRESETS` sets for a kind of task."""
    preset = PRESETS[name]
    row = preset.kinds.get(kind, preset.kinds.get("whole", {}))
    return {**preset.base[rank], **preset.data, **row.get(rank, {})}
