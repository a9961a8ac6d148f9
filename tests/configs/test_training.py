"""Every shipped config trains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.training import checkpoint, loop, run_log, sharding
from ssl3d.training import step as steps
from tests.support.shipped_configs import PROXY_CONFIGS, PUBLISHED_CONFIGS


@pytest.mark.parametrize("name", PROXY_CONFIGS)
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
        if headline == "accuracy":
            assert 0 <= line["accuracy"] <= 1
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
        for name, variant in itertools.product(PUBLISHED_CONFIGS, ("paper", "original"))
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


@pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
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
