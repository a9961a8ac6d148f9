import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from configs import datasets, default
from ssl3d import tasks, xla
from ssl3d.data import pipeline
from ssl3d.errors import UserError
from ssl3d.models import encoders, heads
from ssl3d.tasks.grid import patch_grid
from ssl3d.training import checkpoint, loop, run_log, sharding
from ssl3d.training import step as steps

PROXY = [name for name in tasks.TASKS if not hasattr(tasks.module_of(name), "NEEDS")]
NAMES = [f"{task}{rank}d" for rank, task in itertools.product((2, 3), PROXY)]
ARGUMENTS = [
    f"{preset},{variant}".rstrip(",")
    for preset, variant in itertools.product(datasets.PRESETS, default.VARIANTS)
]


def get_config(name, argument):
    return importlib.import_module(f"configs.{name}").get_config(argument)


def encoded_size(config):
    """*S of what the encoder is shown."""
    if config.task.name not in datasets.PATCH_TASKS:
        return tuple(side // config.task.coarsen for side in config.data.crop)
    overlap = config.task.get("overlap", 0)
    return patch_grid(config.data.crop, config.task.per_side, config.task.jitter, overlap).patch


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_and_variant_builds_and_no_norm_sees_fewer_than_8_voxels(name):
    for argument in ARGUMENTS:
        config = get_config(name, argument)
        if config.rank == 3 and config.data.phantom.kind == "fundus":
            continue  # pictures: refused when the data are opened
        tasks.build(config)
        size = encoded_size(config)
        # The densenet's norms see 128 channels at once, or the whole batch.
        least = 4 if config.encoder.kind == "densenet121" else 8
        assert encoders.smallest_norm(config.encoder, size) >= least, (argument, size)


@pytest.mark.parametrize("file", ["segment3d", "segment2d", "classify2d", "classify3d"])
def test_every_downstream_preset_builds(file):
    labels = tasks.Labels(tuple("abcd"), (1, 2, 3, 4))
    module = importlib.import_module(f"configs.{file}")
    for preset in datasets.PRESETS:
        config = module.get_config(preset)
        if len(config.data.crop) != config.rank or (
            config.rank == 3 and config.data.phantom.kind == "fundus"
        ):
            continue  # pictures for a 3D network: refused when the data are opened
        if config.encoder.kind == "densenet121" and file.startswith("segment"):
            continue  # refused with a reason, see tests/tasks/test_segmentation.py
        tasks.build(config, labels)
        assert encoders.smallest_norm(config.encoder, config.data.crop) >= 8, preset


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


def test_names_tell_runs_apart():
    names = [get_config(name, argument).name for name in NAMES for argument in ARGUMENTS]
    assert len(set(names)) == len(names)


def test_small_tumours_are_drawn_more_often():
    expected = {"phantom": 0.5, "phantom_brain": 0.5, "phantom_abdomen": 0.8}
    found = {name: get_config("segment3d", name).task.foreground for name in expected}
    assert found == expected


@pytest.mark.parametrize("argument", ["brains", "phantom,papr", "", "phantom,paper,original"])
def test_names_that_there_are_not_are_refused(argument):
    with pytest.raises(UserError, match=r"choose"):
        get_config("rpl3d", argument)


@pytest.mark.parametrize("name", NAMES)
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


def random_variables(encoder, shape):
    """Kernels as at initialisation, without compiling one: NumPy is faster."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros(shape))
    flat = traverse_util.flatten_dict(shapes)
    for path, leaf in flat.items():
        if leaf.ndim > 1:
            fan_in = np.prod(leaf.shape[:-1])
            flat[path] = rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)
        else:
            flat[path] = np.full(leaf.shape, float(path[-1] in ("scale", "var")), np.float32)
    return traverse_util.unflatten_dict(flat)


@functools.cache
def pooled_difference(encoder, size, pool):
    """How far apart the pooled features of two images are, in units of their own spread.

    The second image is the first with a bright blob: other in place, not only in brightness.
    """
    rng = np.random.default_rng(1)
    images = np.broadcast_to(rng.normal(size=(1, *size, 1)), (2, *size, 1)).copy()
    images[(1, *(slice(0, side // 2) for side in size))] += 2
    module = encoders.build(dict(encoder))
    variables = random_variables(module, (1, *size, 1))
    features = xla.jit(lambda v, x: heads.pooled(module.apply(v, x, False), pool))(
        variables, jnp.asarray(images, jnp.float32)
    )
    first, second = np.asarray(features, np.float64)
    return np.linalg.norm(first - second) / max(np.linalg.norm(first - first.mean()), 1e-12)


@pytest.mark.parametrize("preset", ["phantom", "phantom_brain", "phantom_abdomen", "hippocampus"])
def test_two_images_have_two_pooled_features_in_every_preset(preset):
    for name in NAMES:
        config = get_config(name, preset)
        encoder = tuple(sorted(config.encoder.to_dict().items()))
        difference = pooled_difference(encoder, encoded_size(config), config.head.pool)
        assert difference > 0.02, name


# Every config trains.


@pytest.mark.parametrize("name", NAMES)
def test_every_config_takes_three_steps(tiny, datasets, tmp_path, name):
    config = tiny(name, datasets[int(name[-2])].path)
    assert loop.train(config, tmp_path)
    lines = run_log.read_metrics(tmp_path)
    assert [(line["split"], line["step"]) for line in lines] == [
        ("val", 0), ("train", 1), ("train", 2), ("train", 3), ("val", 3)
    ]  # fmt: skip
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[0]["loss"] != lines[-1]["loss"]
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        assert 0 < line["chance"] < 1
    manager = checkpoint.open_manager(tmp_path)
    restore = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(3, args=restore)["state"]
    manager.close()
    moments = {}
    for part in ("encoder", "rest"):
        moments |= traverse_util.flatten_dict({part: state["optimizer"][part][0]["mu"]})
    idle = ["/".join(path) for path, leaf in moments.items() if not np.abs(leaf).max() > 0]
    assert not idle, f"parameters without a gradient: {idle}"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_2d_configs_take_slices_of_volumes_along_any_axis(tiny, volumes, axis):
    config = tiny("rpl2d", volumes.path, data__slice_axis=axis)
    task = tasks.build(config)
    batch = next(
        pipeline.train_batches(
            volumes, volumes.split("train"), task.record, rank=2, slice_axis=axis, margin=0,
            batch_size=4, seed=0, threads=1,
        )
    )  # fmt: skip
    assert batch["record"]["patches"].shape == (4, 9, 7, 7, 2)


def one_step(name, variant, tiny, dataset):
    """Loss and parameters before and after one step of a variant."""
    config = tiny(name, dataset.path, argument=f"phantom,{variant}")
    if variant == "original":
        config.head.hidden = (16,) if config.head.hidden else ()
        config.encoder.depth = 2
    task, mesh = tasks.build(config), sharding.make_mesh(1)
    optimizers = steps.make_optimizers(config)
    batch = next(
        pipeline.train_batches(
            dataset, dataset.split("train"), task.record, rank=config.rank, slice_axis=2,
            margin=0, batch_size=4, seed=0, threads=1,
        )
    )  # fmt: skip
    record = jax.tree.map(lambda leaf: leaf[0], batch["record"])
    state = steps.init_state(config, task, optimizers, record, mesh)
    step = steps.make_step(config, task, optimizers, mesh)
    before = jax.device_get(state["params"])
    for _ in range(2):  # the first step of a warm-up has a rate of zero
        state, metrics = step(state, sharding.to_devices(batch, mesh))
    return float(metrics["loss"]), before, jax.device_get(state["params"])


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        pytest.param(name, variant, marks=() if quick else pytest.mark.slow)
        for name, variant in itertools.product(NAMES, ("paper", "original"))
        for quick in [variant == "original" and name in ("exemplar2d", "rpl2d")]
    ],
)
def test_variants_take_a_step(tiny, datasets, name, variant):
    loss, before, after = one_step(name, variant, tiny, datasets[int(name[-2])])
    assert np.isfinite(loss)
    same = [
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
    ]
    assert not all(same)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["paper", "original"])
def test_variants_trace(tiny, datasets, name, variant):
    """Shapes and settings of the step fit; to compile it takes far longer."""
    dataset = datasets[int(name[-2])]
    config = tiny(name, dataset.path, argument=f"phantom,{variant}")
    task = tasks.build(config)
    example = pipeline.open_example(
        dataset, dataset.cases[0], config.rank, 2, 0, np.random.default_rng(0)
    )
    record = task.record(np.random.default_rng(0), example, True)
    records = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape), leaf.dtype), record)

    def step(key, records):
        keys = jax.random.split(key, 4)
        inputs, targets = jax.vmap(lambda k, r: task.views(k, r, True))(keys, records)
        variables = task.network.init({"params": key}, inputs, train=False)
        outputs, _ = task.network.apply(
            variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        labels = {"subject": jnp.arange(4), "valid": jnp.ones(4, bool)}
        return task.loss(outputs, targets | labels)

    loss, metrics = jax.eval_shape(step, jax.random.key(0), records)
    assert loss.shape == (4,)
    assert {"accuracy", "chance"} <= metrics.keys()
    for total, count in metrics.values():
        assert total.shape == count.shape == (4,)
