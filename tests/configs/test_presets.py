import functools
import importlib
import itertools
import operator

import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import bounds, cli, tasks, xla
from ssl3d.configs import datasets, default
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks import joint
from ssl3d.tasks.grid import patch_grid
from tests.support.random_weights import random_variables
from tests.support.shipped_configs import PRESETS, PROXY_CONFIGS, PUBLISHED_CONFIGS, get_config


def arguments(name):
    """DATASET[,VARIANT] of every preset and variant of a config."""
    variants = default.VARIANTS if name in PUBLISHED_CONFIGS else ("",)
    pairs = itertools.product(PRESETS, variants)
    return [f"{preset},{variant}".rstrip(",") for preset, variant in pairs]


def encoded_sizes(config):
    """*S of what the encoder is shown by the task, or by each part of a joint one."""
    if "parts" in config:
        return [encoded_size(part) for part in joint.configs(config).values()]
    return [encoded_size(config)]


def encoded_size(config):
    if "view" in config.task:
        return tuple(side // config.task.coarsen for side in config.task.view)
    if "per_side" not in config.task:
        return tuple(side // config.task.get("coarsen", 1) for side in config.data.crop)
    overlap = config.task.get("overlap", 0)
    return patch_grid(config.data.crop, config.task.per_side, config.task.jitter, overlap).patch


@pytest.mark.parametrize("name", PROXY_CONFIGS)
def test_every_preset_and_variant_builds_and_no_norm_sees_fewer_than_8_voxels(name):
    for argument in arguments(name):
        config = get_config(name, argument)
        if config.rank == 3 and config.data.phantom.kind == "fundus":
            continue  # pictures: refused when the data are opened
        tasks.build(config)
        # The densenet's norms see 128 channels at once, or the whole batch.
        least = 4 if config.encoder.kind == "densenet121" else 8
        for size in encoded_sizes(config):
            assert encoders.smallest_norm(config.encoder, size) >= least, (argument, size)


@pytest.mark.parametrize("file", ["segment3d", "segment2d", "classify2d", "classify3d"])
def test_every_downstream_preset_builds(file):
    labels = tasks.Labels(tuple("abcd"), (1, 2, 3, 4))
    module = importlib.import_module(f"ssl3d.configs.{file}")
    for preset in PRESETS:
        config = module.get_config(preset)
        if len(config.data.crop) != config.rank or (
            config.rank == 3 and config.data.phantom.kind == "fundus"
        ):
            continue  # pictures for a 3D network: refused when the data are opened
        if config.encoder.kind == "densenet121" and file.startswith("segment"):
            continue  # refused with a reason, see tests/tasks/test_segmentation.py
        tasks.build(config, labels)
        assert encoders.smallest_norm(config.encoder, config.data.crop) >= 8, preset


KEYS = (
    "data.crop",
    "data.margin",
    "encoder.width",
    "encoder.depth",
    "batch_size",
    "steps",
    "optimizer.learning_rate",
)
# Config, preset, and the values of these keys.
SIZES = [
    ("rpl3d", "phantom_brain", (54, 54, 54), 0, 8, 4, 8, 200, 0.002),
    ("rpl2d", "phantom_abdomen", (60, 60), 0, 16, 3, 16, 200, 0.002),
    ("cpc3d", "phantom_abdomen", (48, 48, 48), 6, 8, 4, 8, 200, 0.002),
    ("cpc2d", "phantom_fundus", (99, 99), 27, 16, 4, 8, 200, 0.002),
    ("jigsaw3d", "phantom_brain", (54, 54, 54), 0, 8, 4, 4, 120, 0.002),
    ("jigsaw2d", "phantom_fundus", (99, 99), 27, 16, 4, 16, 200, 0.002),
    ("rotation3d", "phantom_abdomen", (56, 56, 56), 0, 8, 5, 24, 100, 0.002),
    ("rotation2d", "phantom_brain", (56, 56), 0, 16, 4, 16, 200, 0.002),
    ("mae3d", "phantom_brain", (48, 48, 48), 0, 8, 4, 2, 400, 0.004),
    ("mae2d", "phantom_fundus", (128, 128), 0, 8, 6, 8, 400, 0.004),
    ("mae3d", "ukb", (128, 128, 128), 0, 32, 5, 4, 100_000, 0.001),
    ("mae2d", "retina", (224, 224), 0, 32, 5, 32, 100_000, 0.001),
    ("exemplar3d", "phantom_brain", (48, 48, 48), 0, 8, 5, 24, 180, 0.002),
    ("exemplar2d", "phantom_fundus", (128, 128), 0, 8, 6, 16, 200, 0.002),
    ("rpl2d", "phantom_fundus", (99, 99), 27, 16, 4, 16, 400, 0.002),
    ("cpc3d", "hippocampus", (36, 48, 36), 0, 8, 3, 16, 200, 0.002),
    ("cpc2d", "hippocampus", (35, 45), 0, 16, 3, 16, 200, 0.002),
    ("rpl3d", "hippocampus", (33, 45, 33), 0, 8, 3, 16, 200, 0.002),
    ("rotation2d", "hippocampus", (32, 32), 0, 16, 4, 16, 200, 0.002),
    ("segment3d", "phantom_brain", (48, 48, 48), 0, 8, 4, 2, 350, 0.004),
    ("segment3d", "phantom_abdomen", (48, 48, 48), 0, 8, 4, 2, 600, 0.004),
    ("segment2d", "phantom_brain", (64, 64), 0, 16, 4, 16, 350, 0.004),
    ("segment3d", "hippocampus", (32, 40, 32), 0, 16, 4, 2, 2400, 0.005),
    ("segment2d", "hippocampus", (32, 40), 0, 16, 4, 32, 1000, 0.005),
    ("classify2d", "phantom_fundus", (160, 160), 0, 8, 6, 16, 400, 0.002),
    ("classify3d", "folder", (128, 128, 128), 0, 32, 5, 8, 100_000, 0.001),
    ("classify2d", "retina", (224, 224), 0, 32, 5, 32, 100_000, 0.001),
    ("segment3d", "brats", (128, 128, 128), 0, 32, 5, 2, 100_000, 0.001),
    ("segment2d", "brats", (128, 128), 0, 32, 5, 8, 100_000, 0.001),
    ("rpl3d", "ukb", (128, 128, 128), 0, 32, 5, 32, 100_000, 0.001),
    ("rpl2d", "retina", (141, 141), 38, 32, 5, 128, 100_000, 0.001),
    ("rotation2d", "retina", (224, 224), 0, 32, 5, 32, 100_000, 0.001),
    ("exemplar3d", "pancreas", (128, 128, 128), 0, 32, 5, 8, 100_000, 0.001),
    ("rpl3d", "ukb,original", (128, 128, 128), 0, 16, 5, 32, 100_000, 0.0001),
    ("rpl2d", "retina,original", (141, 141), 38, 32, 5, 128, 100_000, 1e-05),
]


@pytest.mark.parametrize("row", SIZES, ids=lambda row: f"{row[0]}:{row[1]}")
def test_sizes_of_the_presets(row):
    name, argument, *sizes = row
    config = get_config(name, argument)
    assert [operator.attrgetter(key)(config) for key in KEYS] == sizes


def test_the_phantom_suits_the_task():
    def kind(name):
        return get_config(name, "phantom").data.phantom.kind

    assert [kind(name) for name in ("rpl3d", "segment3d", "classify3d")] == ["brain"] * 3
    assert [kind(name) for name in ("rpl2d", "classify2d")] == ["fundus"] * 2
    assert kind("segment2d") == "brain"  # pictures have no label maps
    brain, phantom = (
        get_config("segment2d", preset).to_dict() for preset in ("phantom_brain", "phantom")
    )
    assert phantom.pop("name") != brain.pop("name")
    assert phantom["data"].pop("preset") != brain["data"].pop("preset")
    assert phantom == brain


@pytest.mark.parametrize(("kind", "like"), [("patches", "jigsaw2d"), ("whole", "rotation2d")])
def test_a_task_outside_the_repository_gets_the_sizes_of_its_kind(kind, like):
    for preset in PRESETS:
        config, _ = default.get_config("lung.masking", 2, preset, kind=kind)
        other = get_config(like, preset)
        assert config.name == f"lung.masking2d_{preset}"
        assert config.data.crop == other.data.crop
        assert config.data.margin == other.data.margin
        assert config.batch_size == other.batch_size
        assert config.encoder == other.encoder


def test_a_kind_or_size_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="choose patches, whole"):
        default.get_config("lung.masking", 3, "phantom", kind="slices")
    sizes = {"phantom_brain": {3: {"batchsize": 4}}}
    with pytest.raises(KeyError, match="batchsize"):
        default.get_config("lung.masking", 3, "phantom", kind="whole", sizes=sizes)


def test_classes_and_patches_of_the_paper():
    for name, patch in (("rpl3d", 39), ("jigsaw3d", 39)):
        config = get_config(name, "ukb,original")
        config.task.jitter = 3
        assert encoded_size(config) == (patch,) * 3
    cpc = get_config("cpc2d", "ukb,original")
    cpc.data.crop, cpc.task.overlap, cpc.task.jitter = (224, 224), 37, 0
    assert encoded_size(cpc) == (74, 74)
    assert get_config("jigsaw3d", "ukb,paper").task.permutations == 1000
    assert get_config("jigsaw3d", "ukb,original").task.permutations == 100
    assert get_config("rpl3d", "ukb,paper").task.queries == 1
    assert get_config("exemplar3d", "ukb,paper").task.zoom == 0.2
    assert get_config("exemplar3d", "ukb,original").task.zoom == 0.15


# What the published variants of a task set; the paper's values, and the released code's by rank.
PUBLISHED_TASKS = {
    ("exemplar3d", "paper"): {
        "flip": 0.5, "turn": 0.5, "zoom": 0.2, "zoom_amount": 0.2, "intensity": 0.0,
        "brightness_contrast": 0.5, "brightness": 0.125, "contrast": 0.5, "code": 1024,
        "margin": 1.0, "objective": "margin",
    },
    ("exemplar3d", "original"): {
        "flip": 0.5, "turn": 0.5, "zoom": 0.15, "zoom_amount": 0.2, "intensity": 0.0,
        "brightness_contrast": 0.5, "brightness": 0.125, "contrast": 0.5, "code": 1024,
        "margin": 1.0, "objective": "original",
    },
    ("exemplar2d", "original"): {
        "flip": 0.5, "turn": 1.0, "zoom": 0.0, "intensity": 0.0,
        "brightness_contrast": 1.0, "brightness": 0.2, "contrast": 0.2, "objective": "original",
    },
    ("jigsaw3d", "paper"): {"permutations": 1000, "spread": True, "code": 64, "jitter": 3},
    ("jigsaw3d", "original"): {"permutations": 100, "spread": False, "code": 0, "jitter": 3},
    ("jigsaw2d", "original"): {"permutations": 100, "spread": False, "code": 0, "jitter": 4},
    ("rpl2d", "original"): {"queries": 1, "jitter": 4, "intensity": 0.0},
    ("cpc3d", "original"): {
        "per_side": 4, "overlap": 0, "jitter": 4, "anchor_row": 1, "border": "mirror",
        "objective": "binary", "code": 1024, "context": 256, "flip_rows": True,
    },
    ("cpc2d", "original"): {
        "per_side": 5, "overlap": 21, "jitter": 4, "anchor_row": 1, "border": "zero",
        "objective": "binary", "code": 1024, "context": 256, "flip_rows": False,
    },
    ("rotation3d", "paper"): {"turns": 2, "group": "axes", "even": False},
    ("rotation3d", "original"): {"turns": 1, "group": "axes", "even": False},
}  # fmt: skip


@pytest.mark.parametrize(("name", "variant"), PUBLISHED_TASKS)
def test_published_settings_of_the_tasks(name, variant):
    found = get_config(name, f"ukb,{variant}").task.to_dict()
    assert PUBLISHED_TASKS[name, variant].items() <= found.items()


@pytest.mark.parametrize(("side", "cpc", "rpl"), [(224, 67, 66), (128, 38, 38)])
def test_patches_of_the_original_in_2d(side, cpc, rpl):
    for name, patch in (("cpc2d", cpc), ("rpl2d", rpl), ("jigsaw2d", rpl)):
        config = get_config(name, "ukb,original")
        config.data.crop = (side, side)
        bounds.derive(config)
        assert encoded_size(config) == (patch,) * 2


def test_flips_are_off_unless_the_preset_knows_better():
    """On where the mirror image is as likely, with the axes on which it is."""
    on = {
        "phantom_brain": (0,),
        "hippocampus": (0,),
        "brats": (0,),
        "phantom_fundus": (0, 1),
        "retina": (0, 1),
    }
    for file in ("segment3d", "segment2d", "classify2d", "classify3d"):
        for preset in datasets.PRESETS:
            augment = get_config(file, preset).augment
            axes = tuple(augment.flip_axes) if augment.flip else ()
            assert axes == on.get(preset, ()), (file, preset)


@pytest.mark.parametrize(("preset", "flip"), [("phantom_brain", 0.0), ("retina", 0.5)])
def test_slices_without_a_left_and_a_right_are_not_flipped(preset, flip):
    config = get_config("classify2d", preset)
    assert config.augment.flip == 0.5
    config.data.slice_axis = 0  # sagittal; pictures have no slices
    bounds.derive(config)
    assert config.augment.flip == flip


def test_the_papers_encoders():
    paper, original = (get_config("rpl3d", f"ukb,{variant}") for variant in ("paper", "original"))
    assert (paper.encoder.kind, paper.encoder.width, paper.encoder.depth) == ("resunet", 32, 5)
    assert (original.encoder.kind, original.encoder.width, original.encoder.depth) == (
        "unet",
        16,
        5,
    )
    assert original.encoder.norm == "batch"
    assert original.encoder.activation_first
    assert paper.optimizer.learning_rate == 1e-3
    assert get_config("rpl2d", "ukb,paper").optimizer.learning_rate == 5e-4
    densenets = [get_config("rpl2d", f"retina{end}").encoder for end in ("", ",paper", ",original")]
    assert [(encoder.kind, encoder.width) for encoder in densenets] == [("densenet121", 32)] * 3
    assert [encoder.norm for encoder in densenets] == ["group", "group", "batch"]


def test_names_tell_runs_apart():
    names = [
        get_config(name, argument).name for name in PROXY_CONFIGS for argument in arguments(name)
    ]
    assert len(set(names)) == len(names)


def test_small_tumours_are_drawn_more_often():
    expected = {"phantom": 0.5, "phantom_brain": 0.5, "phantom_abdomen": 0.8}
    found = {name: get_config("segment3d", name).task.foreground for name in expected}
    assert found == expected


def test_downstream_tasks_have_no_variants():
    with pytest.raises(UserError, match=r"variant 'paper'; this task has no variants$"):
        get_config("segment3d", "phantom,paper")


@pytest.mark.parametrize("argument", ["brains", "phantom,papr", "", "phantom,paper,original"])
def test_names_that_there_are_not_are_refused(argument):
    with pytest.raises(UserError, match=r"choose"):
        get_config("rpl3d", argument)


@pytest.mark.parametrize("name", PROXY_CONFIGS)
def test_phantoms_are_drawn_as_large_as_the_crop_and_suit_the_rank(name):
    for preset in ("phantom", "phantom_brain", "phantom_abdomen", "phantom_fundus"):
        config = get_config(name, preset)
        room = np.array(config.data.phantom.shape) - 2 * config.data.margin
        kind_rank = 2 if config.data.phantom.kind == "fundus" else 3
        assert len(config.data.phantom.shape) == kind_rank
        if config.rank <= kind_rank:
            crop = np.array(config.data.crop)
            assert (crop <= room[: config.rank]).all(), (preset, crop, room)
        assert config.data.phantom.val >= 8


@functools.cache
def random_encoder(encoder, rank):
    """An encoder of these settings and its variables, which images of all sizes share."""
    module = encoders.build(dict(encoder))
    return module, random_variables(module, np.zeros((1, *(32,) * rank, 1), np.float32))


@functools.cache
def pooled_difference(encoder, size, pool):
    """How far apart the pooled features of two images are, in units of their own spread.

    The second image is the first with a bright blob: other in place, not only in brightness.
    """
    rng = np.random.default_rng(1)
    images = np.broadcast_to(rng.normal(size=(1, *size, 1)), (2, *size, 1)).copy()
    images[(1, *(slice(0, side // 2) for side in size))] += 2
    module, variables = random_encoder(encoder, rank=len(size))
    features = xla.jit(lambda v, x: heads.pooled(module.apply(v, x, False), pool))(
        variables, jnp.asarray(images, jnp.float32)
    )
    first, second = np.asarray(features, np.float64)
    return np.linalg.norm(first - second) / max(np.linalg.norm(first - first.mean()), 1e-12)


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("phantom", marks=pytest.mark.slow),
        *("phantom_brain", "phantom_abdomen", "hippocampus"),
    ],
)
def test_two_images_have_two_pooled_features_in_every_preset(preset):
    for name in PROXY_CONFIGS:
        config = get_config(name, preset)
        encoder = tuple(sorted(config.encoder.to_dict().items()))
        pool = config.head.pool if "head" in config else "mean"
        for size in encoded_sizes(config):
            assert pooled_difference(encoder, size, pool) > 0.02, name


@pytest.mark.parametrize("task", ["rpl3d", "jigsaw3d"])
@pytest.mark.parametrize("side", [24, 32, 48, 96])
def test_the_jitter_follows_the_crop(in_repository, task, side):
    parser = cli.Parser(prog="python -m ssl3d.main")
    given = [f"--config=configs/{task}.py:folder", f"--config.data.crop={(side,) * 3}"]
    config = cli.parse_with_config(parser, given)[1]
    assert config.task.jitter == max(min(side // 3 // 4, 8), 1)
