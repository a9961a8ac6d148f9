import hashlib
import importlib
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssl3d import tasks
from ssl3d.data import pipeline
from ssl3d.data.pipeline import Example
from ssl3d.errors import UserError
from ssl3d.tasks import jigsaw
from tests.support.random_weights import random_variables


def distances(table):
    """Hamming distances between all pairs of rows."""
    return np.array([(a != b).sum() for a, b in itertools.combinations(table, 2)])


@pytest.mark.parametrize(
    ("patches", "digest"),
    [(27, "3e486c997f010d59"), (9, "ec239a6d82496866")],
    ids=["27 patches", "9 patches"],
)
def test_permutations_are_the_same_on_any_machine(patches, digest):
    """An encoder that was pretrained elsewhere was asked for these very classes."""
    table = jigsaw.permutations(100, patches, 0, True)
    assert hashlib.sha256(table.astype("<i4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("count", "patches"), [(100, 27), (100, 9), (6, 3), (20, 4)])
@pytest.mark.parametrize("spread", [True, False])
def test_permutations_are_permutations_and_differ(count, patches, spread):
    table = jigsaw.permutations(count, patches, 0, spread)
    assert table.shape == (count, patches)
    np.testing.assert_array_equal(np.sort(table, axis=1), np.tile(np.arange(patches), (count, 1)))
    assert len(np.unique(table, axis=0)) == count


@pytest.mark.parametrize(("patches", "least"), [(27, 24), (9, 6)])
def test_permutations_lie_further_apart_than_random_ones(patches, least):
    spread = distances(jigsaw.permutations(100, patches, 0, True))
    random = distances(jigsaw.permutations(100, patches, 0, False))
    assert spread.min() > random.min()
    assert spread.min() >= least
    assert spread.mean() > random.mean()


def test_another_seed_gives_other_permutations():
    first, second = (jigsaw.permutations(100, 9, seed, True) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_the_papers_thousand_permutations_are_found_in_seconds():
    jigsaw.permutations.cache_clear()
    begin = time.process_time()
    table = jigsaw.permutations(1000, 27, 0, True)
    assert time.process_time() - begin < 30
    assert len(np.unique(table, axis=0)) == 1000


def test_more_permutations_than_there_are_is_refused():
    with pytest.raises(
        UserError, match=r"config\.task\.permutations=7: must be between 2 and 3! for 3 patches"
    ):
        jigsaw.permutations(7, 3, 0, True)


@pytest.mark.parametrize("rank", [2, 3])
def test_permuting_embeddings_equals_permuting_patches(tiny, rank):
    config = tiny(f"jigsaw{rank}d", task__puzzles=2, task__permutations=10)
    task = tasks.build(config)
    count, batch = 3**rank, 2
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.normal(size=(batch, count, *(7,) * rank, 1)), jnp.float32)
    orders = np.stack([[rng.permutation(count) for _ in range(2)] for _ in range(batch)])
    variables = random_variables(task.network, (patches, orders))
    apply = jax.jit(task.network.apply)
    logits = apply(variables, (patches, orders))
    assert logits.shape == (batch, 2, 10)
    plain = np.broadcast_to(np.arange(count), orders.shape)
    for puzzle in range(2):
        shuffled = jnp.stack(
            [p[order] for p, order in zip(patches, orders[:, puzzle], strict=True)]
        )
        alone = apply(variables, (shuffled, plain))[:, 0]
        np.testing.assert_allclose(logits[:, puzzle], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(logits[:, 0], logits[:, 1], atol=1e-3)  # the order matters


def test_puzzles_of_a_volume_share_one_encoding_of_its_patches(tiny):
    config = tiny("jigsaw3d", task__puzzles=5)
    task = tasks.build(config)
    encoded = []

    def note(call, arguments, options, context):
        if context.module.name == "encoder" and context.method_name == "__call__":
            encoded.append(arguments[0].shape)
        return call(*arguments, **options)

    image = np.zeros((*config.data.crop, 2), np.float16)
    record = pipeline.arrays(task.record(np.random.default_rng(0), Example(image, None), True))
    (patches, orders), targets = jax.eval_shape(
        lambda key, record: task.views(key, record, True), jax.random.key(0), record
    )
    assert orders.shape == (5, 27)
    assert targets["permutation"].shape == (5,)
    batch = (jnp.zeros((2, *patches.shape)), jnp.zeros((2, 5, 27), int))
    with nn.intercept_methods(note):
        outputs, _ = jax.eval_shape(task.network.init_with_output, jax.random.key(0), batch)
    assert encoded == [(2 * 27, *patches.shape[1:])]
    assert outputs.shape == (2, 5, config.task.permutations)


@pytest.mark.parametrize("rank", [2, 3])
def test_in_the_original_no_layer_lies_between_encoder_and_head(tiny, rank):
    config = tiny(f"jigsaw{rank}d", argument="phantom,original", head__hidden=(2048, 1024))
    config.task.code = default_code(rank)
    task = tasks.build(config)
    patches = jnp.zeros((1, 3**rank, *(6,) * rank, 1))
    orders = jnp.arange(3**rank)[None, None]
    shapes = jax.eval_shape(task.network.init, jax.random.key(0), (patches, orders))["params"]
    assert sorted(shapes) == ["encoder", "head"]
    assert shapes["head"]["Dense_0"]["kernel"].shape == (3**rank * 8, 2048)


def default_code(rank):
    return (
        importlib.import_module(f"ssl3d.configs.jigsaw{rank}d").get_config("ukb,original").task.code
    )


def test_targets_name_the_orders():
    table = jnp.asarray(jigsaw.permutations(20, 9, 0, True))
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3, 3, 1)), jnp.float16)

    @jax.jit
    @jax.vmap
    def draw(key):
        return jigsaw.views(key, {"patches": patches}, False, table, 4, 0.2)

    (shown, orders), targets = draw(jax.random.split(jax.random.key(0), 100))
    numbers = np.asarray(targets["permutation"])
    np.testing.assert_array_equal(orders, table[numbers])
    assert shown.dtype == jnp.float32
    np.testing.assert_array_equal(shown[7], patches.astype(jnp.float32))
    assert all(len(set(row)) == 4 for row in numbers)
    assert set(numbers.ravel()) == set(range(20))


def test_every_patch_gets_a_brightness_of_its_own_in_training():
    table = jnp.asarray(jigsaw.permutations(20, 9, 0, True))
    patches = jnp.ones((9, 2, 2, 1))
    (shown, _), _ = jigsaw.views(jax.random.key(0), {"patches": patches}, True, table, 4, 0.2)
    levels = np.asarray(shown).reshape(9, -1)
    assert np.allclose(levels, levels[:, :1])
    assert len(np.unique(levels[:, 0])) == 9
    assert np.abs(levels - 1).max() <= 0.4 + 1e-6


def test_an_undecided_network_is_never_right():
    loss, metrics = jigsaw.loss(jnp.zeros((2, 3, 100)), {"permutation": jnp.ones((2, 3), int)})
    np.testing.assert_allclose(loss, np.log(100), rtol=1e-6)
    assert metrics["accuracy"][0].sum() == 0
    np.testing.assert_allclose(metrics["chance"][0] / metrics["chance"][1], 0.01, rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"task__permutations": 4, "task__puzzles": 5}, "config.task.puzzles"),
        ({"task__puzzles": 0}, "config.task.puzzles"),
        ({"task__permutations": 0}, "config.task.p"),
        ({"data__crop": (5, 5)}, "config.data.crop"),
        ({"task__permutations": 400_000}, "config.task.permutations"),
        ({"task__jitter": -2}, "config.task.jitter"),
        ({"task__per_side": 0}, "config.task.per_side"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("jigsaw2d", **overrides))
