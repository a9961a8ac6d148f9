import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.data.pipeline import Example
from ssl3d.errors import UserError
from ssl3d.tasks import rpl
from ssl3d.tasks.grid import Chosen, Cut, cut, patch_grid
from tests.support.random_weights import random_variables


@pytest.mark.parametrize(("count", "classes"), [(27, 26), (9, 8)])
def test_classes_are_the_places_but_the_centre(count, classes):
    centre = count // 2
    places = jnp.array([i for i in range(count) if i != centre])
    np.testing.assert_array_equal(rpl.class_of(places, centre), np.arange(classes))


@pytest.mark.parametrize(("rank", "classes"), [(3, 26), (2, 8)])
def test_only_the_centre_and_the_queries_are_encoded(tiny, rank, classes):
    config = tiny(f"rpl{rank}d", task__queries=3)
    task = tasks.build(config)
    image = np.zeros((*config.data.crop, 2), np.float16)
    record = pipeline.arrays(task.record(np.random.default_rng(0), Example(image, None), True))
    inputs, targets = jax.eval_shape(
        lambda key, record: task.views(key, record, True), jax.random.key(0), record
    )
    assert inputs.shape == (1 + 3, *record["patches"].shape[1:])
    assert targets["position"].shape == (3,)

    encoded = []

    def note(call, arguments, options, context):
        if context.module.name == "encoder" and context.method_name == "__call__":
            encoded.append(arguments[0].shape)
        return call(*arguments, **options)

    batch = jnp.zeros((2, *inputs.shape))
    with nn.intercept_methods(note):
        outputs, _ = jax.eval_shape(task.network.init_with_output, jax.random.key(0), batch)
    assert outputs.shape == (2, 3, classes)
    assert encoded == [(2 * 4, *inputs.shape[1:])]


@pytest.fixture(scope="module", params=[2, 3])
def draws(request):
    """200 records of 3 queries each from an image of which every voxel holds its patch's number."""
    rank = request.param
    numbers = np.arange(3.0**rank, dtype=np.float16).reshape((3,) * rank)
    image = np.kron(numbers, np.ones((4,) * rank, np.float16))[..., None]
    size = image.shape[:-1]
    sample = functools.partial(rpl.sample, count=3**rank, centre=3**rank // 2, queries=3)
    record = Chosen(Cut(size, patch_grid(size, 3, jitter=1)), sample)
    found = [
        pipeline.arrays(record(np.random.default_rng(seed), Example(image, None), False))
        for seed in range(200)
    ]
    found = {key: np.stack([one[key] for one in found]) for key in found[0]}

    @jax.jit
    @jax.vmap
    def draw(record):
        return rpl.views(jax.random.key(0), record, False, 3**rank // 2, 0.2)

    inputs, targets = draw(found)
    return rank, found, np.asarray(inputs), jax.tree.map(np.asarray, targets)


def test_the_centre_comes_first_and_then_the_queries(draws):
    rank, record, inputs, targets = draws
    numbers = inputs.reshape(200, 4, -1)
    assert (numbers == numbers[..., :1]).all()
    assert (numbers[:, 0, 0] == 3**rank // 2).all()
    np.testing.assert_array_equal(numbers[:, 1:, 0], targets["query"])
    np.testing.assert_array_equal(numbers[..., 0], record["chosen"])
    np.testing.assert_array_equal(
        targets["position"], rpl.class_of(jnp.asarray(targets["query"]), 3**rank // 2)
    )
    cells = record["starts"] // 4  # jitter stays in the cell
    np.testing.assert_array_equal(
        np.ravel_multi_index(np.moveaxis(cells, -1, 0), (3,) * rank), record["chosen"]
    )


def test_patches_shared_with_a_task_that_sees_them_all_give_the_same_views(draws):
    rank, record, inputs, _ = draws
    numbers = np.arange(3.0**rank, dtype=np.float16).reshape(-1, *(1,) * (rank + 1))
    patches = np.broadcast_to(numbers, (3**rank, *inputs.shape[2:]))
    shared = {"patches": jnp.asarray(patches), "chosen": jnp.asarray(record["chosen"][7])}
    taken = Chosen.take(shared | {"starts": jnp.zeros((3**rank, rank))})
    again, targets = rpl.views(jax.random.key(0), taken, False, 3**rank // 2, 0.2)
    np.testing.assert_array_equal(again, inputs[7])
    np.testing.assert_array_equal(targets["query"], record["chosen"][7, 1:])


def test_queries_of_one_volume_differ_and_all_places_are_asked_for(draws):
    rank, _, _, targets = draws
    assert all(len(set(row)) == 3 for row in targets["position"])
    asked = np.bincount(targets["position"].ravel(), minlength=3**rank - 1)
    assert len(asked) == 3**rank - 1
    assert asked.min() > 0.3 * asked.mean()


def test_every_patch_gets_a_brightness_of_its_own_in_training():
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 1)).astype(np.float32))
    record, key = {"patches": patches, "chosen": jnp.array([4, 1, 8, 3])}, jax.random.key(3)
    plain, targets = rpl.views(key, record, False, 4, 0.2)
    changed, same = rpl.views(key, record, True, 4, 0.2)
    np.testing.assert_array_equal(targets["query"], same["query"])
    gains = []
    for before, after in zip(plain, changed, strict=True):
        gain, shift = np.polyfit(before.ravel(), after.ravel(), 1)
        np.testing.assert_allclose(after, gain * before + shift, atol=1e-5)
        assert 0.8 <= gain <= 1.2
        assert abs(shift) <= 0.2
        gains.append(gain)
    assert len(np.unique(np.round(gains, 6))) == 4


def test_directions_point_from_the_centre_to_the_query():
    grid = patch_grid((15, 15, 15), 3, jitter=1)
    assert rpl.direction(0, grid) == "-1 -1 -1"
    assert rpl.direction(14, grid) == "+0 +0 +1"
    assert rpl.direction(26, grid) == "+1 +1 +1"
    image = np.zeros((20, 20, 20, 1), np.float16)
    at = cut(np.random.default_rng(0), Example(image, None), (15, 15, 15), grid, True)["starts"]
    for query in set(range(27)) - {13}:
        steps = [int(step) for step in rpl.direction(query, grid).split()]
        np.testing.assert_array_equal(np.rint((at[query] - at[13]) / grid.stride[0]), steps)


def test_each_query_is_answered_from_the_centre_and_itself_alone(tiny):
    task = tasks.build(tiny("rpl2d"))
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.normal(size=(2, 4, 7, 7, 1)), jnp.float32)
    variables = random_variables(task.network, patches)
    answer = jax.jit(task.network.apply)
    before = answer(variables, patches)
    after = answer(variables, patches.at[0, 2].add(1.0))  # the second query of the first volume
    changed = np.abs(before - after).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(changed, [[False, True, False], [False, False, False]])
    after = answer(variables, patches.at[0, 0].add(1.0))  # its centre
    changed = np.abs(before - after).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(changed, [[True, True, True], [False, False, False]])


def test_an_undecided_network_is_never_right():
    loss, metrics = rpl.loss(jnp.zeros((2, 3, 26)), {"position": jnp.zeros((2, 3), int)})
    np.testing.assert_allclose(loss, np.log(26), rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"][0], 0)
    np.testing.assert_allclose(metrics["chance"][0] / metrics["chance"][1], 1 / 26, rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"task__per_side": 4}, "config.task.per_side"),
        ({"task__queries": 27}, "config.task.queries"),
        ({"task__queries": 0}, "config.task.queries"),
        ({"data__crop": (5, 5, 5)}, "config.data.crop"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("rpl3d", **overrides))
