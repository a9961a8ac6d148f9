import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import tasks
from ssl3d.errors import UserError
from ssl3d.tasks import mae
from ssl3d.training import loop, run_log, sharding
from ssl3d.training import step as steps

# Crops and blocks, also of sides that are no multiple of the block.
SHAPES = [((12, 12), 4), ((11, 9), 4), ((8, 8, 8), 4), ((7, 9, 10), 3)]


def crop_of(size, channels=2, seed=0):
    return np.random.default_rng(seed).normal(2, 3, (*size, channels)).astype(np.float32)


def blocks_of(size, block):
    """The slices of every block, in C order."""
    starts = itertools.product(*(range(0, side, block) for side in size))
    return [tuple(slice(start, start + block) for start in at) for at in starts]


def sample(size, block, masked, normalise=False, seed=0):
    """A crop, and what the task makes of it, as NumPy arrays."""
    volume = crop_of(size, seed=seed)
    key = jax.random.key(seed)
    inputs, targets = mae.views(key, {"volume": jnp.asarray(volume)}, masked, block, normalise)
    return volume, np.asarray(inputs), jax.tree.map(np.asarray, targets)


# What is masked.


@pytest.mark.parametrize(("size", "block"), SHAPES)
@pytest.mark.parametrize("masked", [1, 3, 5])
def test_whole_blocks_are_masked_as_many_as_asked_for(size, block, masked):
    seen = set()
    for seed in range(5):
        volume, inputs, targets = sample(size, block, masked, seed=seed)
        states = [set(targets["mask"][place].ravel()) for place in blocks_of(size, block)]
        assert all(len(state) == 1 for state in states)
        assert states.count({True}) == masked
        seen.add(tuple(True in state for state in states))
        visible = ~targets["mask"][..., None]
        np.testing.assert_array_equal(inputs, np.where(visible, volume, 0))
    assert len(seen) > 1


@pytest.mark.parametrize(("rank", "side", "block", "ratio", "masked"), [
    (3, 24, 6, 0.75, 48), (3, 24, 6, 0.6, 38), (2, 24, 6, 0.6, 10), (2, 20, 6, 0.75, 12),
])  # fmt: skip
def test_the_ratio_is_that_of_the_blocks(tiny, rank, side, block, ratio, masked):
    config = tiny(f"mae{rank}d", data__crop=(side,) * rank, task__block=block, task__ratio=ratio)
    record = {"volume": jnp.asarray(crop_of(config.data.crop))}
    _, targets = tasks.build(config).views(jax.random.key(3), record, True)
    mask = np.asarray(targets["mask"])
    assert sum(mask[place].all() for place in blocks_of(mask.shape, block)) == masked


class Echo(nn.Module):
    """A network that answers its input."""

    def __call__(self, x, train=False):
        return x


def test_validation_masks_depend_on_seed_case_and_repeat_alone(tiny):
    def masks(cases, repeats, seed=0, noise=0):
        config = tiny("mae2d", seed=seed, data__crop=(12, 12), task__block=3)
        task = tasks.build(config)._replace(
            network=Echo(), collect=lambda inputs, outputs, targets: {"mask": targets["mask"]}
        )
        count = len(cases)
        batch = {
            "record": {"volume": np.stack([crop_of((12, 12), seed=noise + i) for i in cases])},
            "case_key": np.asarray(cases, np.uint32),
            "repeat": np.asarray(repeats, np.int32),
            "subject": np.arange(count),
            "valid": np.ones(count, bool),
        }
        evaluation = steps.make_evaluation(config, task, sharding.make_mesh(1))
        found = np.asarray(evaluation({}, batch)[2]["mask"])
        return {
            (case, repeat): mask.tobytes()
            for case, repeat, mask in zip(cases, repeats, found, strict=True)
        }

    wide = masks([5, 7, 5, 9], [0, 0, 1, 0])
    assert len(set(wide.values())) == 4
    narrow = masks([9, 5], [0, 1], noise=100)
    assert all(narrow[pair] == wide[pair] for pair in narrow)
    assert masks([9, 5], [0, 1], seed=1)[9, 0] != wide[9, 0]


# What is predicted.


@pytest.mark.parametrize(("size", "block"), SHAPES)
def test_targets_are_relative_to_the_mean_of_the_visible_voxels(size, block):
    volume, _, targets = sample(size, block, 3)
    mean = volume[~targets["mask"]].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(targets["target"], volume - mean, atol=1e-5)


@pytest.mark.parametrize(("size", "block"), SHAPES)
def test_normalised_targets_have_mean_0_and_variance_1_in_each_block(size, block):
    volume, _, targets = sample(size, block, 3, normalise=True)
    for place in blocks_of(size, block):
        values = volume[place].reshape(-1, volume.shape[-1]).astype(np.float64)
        expected = (volume[place] - values.mean(0)) / np.sqrt(values.var(0) + 1e-6)
        np.testing.assert_allclose(targets["target"][place], expected, atol=1e-4)


@pytest.mark.parametrize(("size", "block"), [((9, 8), 3), ((5, 6, 4), 2)])
def test_filling_is_a_weighted_mean_of_visible_voxels(size, block):
    _, _, targets = sample(size, block, len(blocks_of(size, block)) * 3 // 4)
    image, mask = targets["target"].astype(np.float64), targets["mask"]
    indices = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    lonely = 0
    for voxel in itertools.product(*map(range, size)):
        distance = np.abs(indices - np.asarray(voxel))
        weight = np.maximum(0, 1 - distance / (block + 1)).prod(-1) * ~mask
        expected = np.zeros(2)
        if weight.sum() > 0:
            expected = (weight[..., None] * image).sum(tuple(range(len(size)))) / weight.sum()
        lonely += weight.sum() == 0
        np.testing.assert_allclose(targets["filling"][voxel], expected, atol=1e-5)
    assert lonely < mask.size / 4


def test_filling_follows_a_smooth_image():
    ramp = jnp.linspace(-1, 1, 24)[:, None] + jnp.linspace(-1, 1, 24)
    record = {"volume": ramp[..., None]}
    _, targets = mae.views(jax.random.key(0), record, 18, 4, False)
    batch = jax.tree.map(lambda x: x[None], targets)
    total, count = mae.loss(jnp.zeros((1, 24, 24, 1)), batch)[1]["explained_filling"]
    assert total / count > 0.8


# The loss.


def batch_of(size, block, masked, count=3):
    rows = [sample(size, block, masked, seed=seed)[2] for seed in range(count)]
    targets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    outputs = np.random.default_rng(9).normal(size=(count, *size, 2)).astype(np.float32)
    return jnp.asarray(outputs), targets


@pytest.mark.parametrize(("size", "block"), SHAPES)
def test_loss_and_metrics_by_brute_force(size, block):
    outputs, targets = batch_of(size, block, 4)
    found, metrics = mae.loss(outputs, targets)
    for i in range(len(outputs)):
        errors = {"mean": [], "explained": [], "explained_filling": []}
        for voxel in itertools.product(*map(range, size)):
            if targets["mask"][i][voxel]:
                target = np.asarray(targets["target"][i][voxel], np.float64)
                filled = np.asarray(targets["filling"][i][voxel])
                errors["mean"].append(target**2)
                errors["explained"].append((np.asarray(outputs[i][voxel]) - target) ** 2)
                errors["explained_filling"].append((filled - target) ** 2)
        mean = {name: np.mean(values) for name, values in errors.items()}
        assert found[i] == pytest.approx(mean["explained"], rel=1e-5)
        for name, (total, count) in metrics.items():
            assert total[i] == pytest.approx(mean["mean"] - mean[name], rel=1e-4, abs=1e-4)
            assert count[i] == pytest.approx(mean["mean"], rel=1e-5)


@pytest.mark.parametrize(("size", "block"), SHAPES)
def test_predictions_of_visible_voxels_do_not_count(size, block):
    outputs, targets = batch_of(size, block, 4)
    gradient = jax.grad(lambda x: mae.loss(x, targets)[0].sum())(outputs)
    mask = np.asarray(targets["mask"])
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert (np.asarray(gradient)[mask] != 0).all()


def test_a_constant_explains_nothing_and_the_truth_all():
    """Zero, the answer of a decoder of zeros, is exactly the yardstick: the visible mean."""
    _, targets = batch_of((12, 12), 3, 12, count=64)
    for constant in (0.0, 0.2, -0.2):
        total, _ = mae.loss(jnp.full((64, 12, 12, 2), constant), targets)[1]["explained"]
        assert total.sum() < 0 or (constant == 0 and (total == 0).all())
    total, count = mae.loss(targets["target"], targets)[1]["explained"]
    np.testing.assert_array_equal(total, count)


# The network.


@pytest.mark.parametrize("name", ["mae2d", "mae3d"])
def test_the_network_sees_no_masked_voxel(tiny, name):
    rank = int(name[-2])
    config = tiny(name, data__crop=(8,) * rank, task__block=4, task__ratio=0.5)
    task = tasks.build(config)
    volume = jnp.asarray(crop_of(config.data.crop))
    key = jax.random.key(1)
    inputs, targets = task.views(key, {"volume": volume}, True)
    variables = jax.jit(task.network.init)(key, inputs[None])
    assert set(variables["params"]) == {"encoder", "decoder"}

    @jax.jit
    def answer(volume):
        inputs, _ = task.views(key, {"volume": volume}, True)
        return task.network.apply(variables, inputs[None], train=True)

    assert answer(volume).shape == (1, *volume.shape)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.square(answer(x)).sum()))(volume))
    mask = np.asarray(targets["mask"])
    assert (gradient[mask] == 0).all()
    assert (gradient[~mask] != 0).mean() > 0.9
    other = jnp.where(mask[..., None], -3 * volume + 1, volume)
    np.testing.assert_array_equal(answer(volume), answer(other))


@pytest.mark.parametrize("outputs", [None, "zeros"])
def test_panels(tiny, outputs):
    config = tiny("mae2d", data__crop=(12, 12), task__block=3)
    task = tasks.build(config)
    record = {
        "volume": jnp.asarray(crop_of((12, 12)), jnp.float16),
        "start": jnp.asarray([3, 5]),
    }
    on_device = jax.tree.map(jnp.asarray, record)
    inputs, targets = jax.device_get(task.views(jax.random.key(0), on_device, True))
    given = None if outputs is None else np.zeros_like(inputs)
    whole, *shown = task.panels(record, inputs, targets, given)
    assert whole.boxes[0].start == (3, 5)
    pictures = {panel.title: panel.image for panel in shown}
    titles = ["input", "masked input", *(["reconstruction"] if outputs else []), "target"]
    assert list(pictures) == titles
    if outputs:
        mask = targets["mask"]
        assert (pictures["reconstruction"][mask] == 0).all()
        np.testing.assert_array_equal(pictures["reconstruction"][~mask], targets["target"][~mask])


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tiny, pictures, tmp_path, capsys):
    config = tiny(
        "mae2d", pictures.path, steps=4, checkpoint_every=2, validate_every=4, data__crop=(16, 16),
        task__block=4, task__normalise=True, optimizer__accumulate=2, encoder__dtype="bfloat16",
    )  # fmt: skip
    assert loop.train(config, tmp_path / "whole")
    assert "filling" in capsys.readouterr().out.splitlines()[-1]
    assert loop.train(config, tmp_path / "pieces", stop_at=2)
    assert loop.train(config, tmp_path / "pieces")
    for part in ("encoder", "decoder"):
        files = [tmp_path / run / part / f"{part}.safetensors" for run in ("whole", "pieces")]
        assert files[0].read_bytes() == files[1].read_bytes()
    whole, pieces = (run_log.read_metrics(tmp_path / run)[-1] for run in ("whole", "pieces"))
    for key in ("loss", "explained", "explained_low", "explained_high", "explained_filling"):
        assert whole[key] == pieces[key]
    assert "chance" not in whole


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny):
    config = tiny("mae2d", data__crop=(8, 8), task__block=2)
    task, mesh = tasks.build(config), sharding.make_mesh(1)
    volumes = np.stack([crop_of((8, 8), seed=i) for i in range(4)])
    batch = {"record": {"volume": volumes}, "subject": np.arange(4)}
    record = {"volume": volumes[0]}
    state = steps.init_state(config, task, steps.make_optimizers(config), record, mesh)
    found = []
    for micro in (1, 2):
        config.optimizer.accumulate = micro
        found.append(
            jax.jit(steps.make_gradients(config.copy_and_resolve_references(), task))(state, batch)
        )
    for one, other in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task__ratio": 0.01}, "config.task.ratio=0.01: masks 0 of 16 blocks"),
        ({"task__ratio": 0.99}, "config.task.ratio=0.99: masks 16 of 16 blocks"),
        ({"task__block": 24}, "masks 1 of 1 blocks"),
        ({"encoder__depth": 1}, "config.encoder.depth=1"),
        (
            {"encoder__kind": "densenet121"},
            "'densenet121': has no level at full resolution to reconstruct with; use unet or resu",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        tasks.build(tiny("mae2d", **overrides))
