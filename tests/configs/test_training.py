"""Every shipped config trains."""

import itertools

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.training import checkpoint, loop, run_log, sharding
from ssl3d.training import step as steps
from tests.support.examples import traced_step
from tests.support.shipped_configs import PROXY_CONFIGS, PUBLISHED_CONFIGS

# Rank is a number: by default each task trains in one, these in 3D.
IN_3D = ("cpc", "rotation", "rpl")
BY_DEFAULT = {name for name in PROXY_CONFIGS if (name[-2:] == "3d") == (name[:-2] in IN_3D)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.slow)
        for name in PROXY_CONFIGS
    ],
)
def test_every_config_takes_three_steps(tiny, datasets, tmp_path, name):
    config = tiny(name, datasets[int(name[-2])].path)
    assert loop.train(config, tmp_path)
    lines = run_log.read_metrics(tmp_path)
    assert [(line["split"], line["step"]) for line in lines] == [
        ("val", 0), ("train", 1), ("train", 2), ("train", 3), ("val", 3)
    ]  # fmt: skip
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[0]["loss"] != lines[-1]["loss"]
    headline = tasks.build(config).headline
    for line in lines:
        if "chance" in line:
            assert 0 <= line[headline] <= 1
            assert 0 < line["chance"] < 1
        else:
            assert line[headline] <= 1
    manager = checkpoint.open_manager(tmp_path)
    restore = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(3, args=restore)["state"]
    manager.close()
    moments = {}
    for part in ("encoder", "rest"):
        moments |= traverse_util.flatten_dict({part: state["optimizer"][part][0]["mu"]})
    idle = ["/".join(path) for path, leaf in moments.items() if not np.abs(leaf).max() > 0]
    assert not idle, f"parameters without a gradient: {idle}"


@pytest.mark.slow
def test_a_resumed_run_of_parts_ends_with_the_same_weights(tiny, pictures, tmp_path):
    config = tiny(
        "joint2d", pictures.path, steps=4, checkpoint_every=2, validate_every=2,
        task__parts=("rpl", "contrast"),  # one of them with a score of its own
    )  # fmt: skip
    assert loop.train(config, tmp_path / "whole")
    assert loop.train(config, tmp_path / "run", stop_at=2)
    assert loop.train(config, tmp_path / "run")
    runs = [tmp_path / "whole", tmp_path / "run"]
    whole, resumed = ((run / "encoder" / "encoder.safetensors").read_bytes() for run in runs)
    assert whole == resumed
    whole, resumed = (run_log.read_metrics(run) for run in runs)
    for one, other in zip(whole, resumed, strict=True):
        timings = {"volumes_per_second", "data_wait", "seconds"}
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] for key in one.keys() - timings)


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
    assert batch["record"]["patches"].shape == (4, 1 + 3, 7, 7, 2)


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
    state, metrics = step(state, sharding.to_devices(batch, mesh))
    return float(metrics["loss"]), before, jax.device_get(state["params"])


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        pytest.param(name, variant, marks=() if quick else pytest.mark.slow)
        for name, variant in itertools.product(PUBLISHED_CONFIGS, ("paper", "original"))
        for quick in [variant == "original" and name == "exemplar2d"]
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


@pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
@pytest.mark.parametrize("variant", ["paper", "original"])
def test_variants_trace(tiny, datasets, name, variant):
    """Shapes and settings of the step fit; to compile it takes far longer."""
    dataset = datasets[int(name[-2])]
    config = tiny(name, dataset.path, argument=f"phantom,{variant}")
    loss, metrics = traced_step(config, dataset)
    assert loss.shape == (4,)
    assert {"accuracy", "chance"} <= metrics.keys()
    for total, count in metrics.values():
        assert total.shape == count.shape == (4,)
