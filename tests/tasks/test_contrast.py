import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d import losses, tasks
from ssl3d.data import pipeline
from ssl3d.data.pipeline import Example
from ssl3d.errors import UserError
from ssl3d.tasks import contrast

OBJECTIVES = ("info_nce", "vicreg", "overlap")
WEIGHTS = (25.0, 25.0, 1.0)
vicreg = jax.jit(losses.vicreg, static_argnums=(2, 3, 4))
overlap_loss = jax.jit(contrast.overlap_loss)


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(batch, views=2, size=6, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(batch, views, size)))


def everyone(batch):
    return {"subject": jnp.arange(batch), "valid": jnp.ones(batch, bool)}


def build(tiny, objective, **overrides):
    side = 12 if objective == "overlap" else 16
    settings = {"task__objective": objective, "task__view": (side, side)} | overrides
    return tasks.build(tiny("contrast2d", **settings))


def loss_of(tiny, objective, **overrides):
    return jax.jit(build(tiny, objective, **overrides).loss)


# The losses, against their definitions.


def test_info_nce_is_what_its_definition_says(tiny):
    x = embeddings(5)
    subject, valid = np.array([4, 2, 4, 9, 5]), np.arange(5) != 4
    loss, metrics = loss_of(tiny, "info_nce", task__temperature=0.2)(
        x, {"subject": subject, "valid": valid}
    )
    for i in range(5):
        terms, hits = [], 0
        for v in range(2):
            own = np.exp(x[i, v] @ x[i, 1 - v] / 0.2)
            rivals = [
                np.exp(x[i, v] @ x[j, w] / 0.2)
                for j, w in itertools.product(range(5), range(2))
                if subject[j] != subject[i] and valid[j]
            ]
            terms.append(-np.log(own / (own + sum(rivals))))
            hits += all(own > rival for rival in rivals)
        assert loss[i] == pytest.approx(np.mean(terms), rel=1e-4)
        assert metrics["accuracy"][0][i] == hits


def vicreg_by_hand(x, weights):
    """The released code's loss of a batch, in NumPy."""
    total = weights[0] * np.square(x[:, 0] - x[:, 1]).mean()
    for view in (x[:, 0], x[:, 1]):
        deviation = np.sqrt(view.var(axis=0, ddof=1) + 1e-4)
        total += weights[1] * np.maximum(1 - deviation, 0).mean() / 2
        covariance = np.cov(view, rowvar=False)
        np.fill_diagonal(covariance, 0)
        total += weights[2] * np.square(covariance).sum() / view.shape[1]
    return total


@pytest.mark.parametrize("weights", [WEIGHTS, (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_vicreg_is_what_its_definition_says(weights):
    x = 1.5 * np.random.default_rng(0).normal(size=(7, 2, 4))
    loss = vicreg(x.astype(np.float32), np.ones(7, bool), *weights)
    assert loss.mean() == pytest.approx(vicreg_by_hand(x, weights), rel=1e-4)
    padded = np.concatenate([x, np.full((2, 2, 4), 9.0)]).astype(np.float32)
    np.testing.assert_allclose(vicreg(padded, np.arange(9) < 7, *weights)[:7], loss, rtol=1e-4)


def test_overlap_is_what_its_definition_says():
    x, shares = embeddings(3, views=5), np.random.default_rng(1).dirichlet(np.ones(4), 3)
    loss, metrics = overlap_loss(x, {"overlap": shares})
    for i in range(3):
        similar = [x[i, 0] @ base for base in x[i, 1:]]
        errors = [abs(max(s, 0) - share) for s, share in zip(similar, shares[i], strict=True)]
        pairs = itertools.combinations(x[i, 1:], 2)
        expected = -np.mean([np.log(1.001 - error) for error in errors])
        expected += np.mean([max(a @ b, 0) for a, b in pairs])
        assert loss[i] == pytest.approx(expected, rel=1e-4)
        assert metrics["accuracy"][0][i] == (np.argmax(similar) == np.argmax(shares[i]))
    np.testing.assert_allclose(metrics["chance"][0], 1 / 4)


# Invariants.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_constant_encoder_gains_nothing(tiny, objective):
    count = 5 if objective == "overlap" else 2
    x = np.broadcast_to(unit(np.ones(6)), (6, count, 6))
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 6)
    loss, metrics = loss_of(tiny, objective)(x, everyone(6) | {"overlap": shares})
    assert metrics["accuracy"][0].sum() == 0
    least = {"info_nce": np.log(11), "vicreg": 25 * 0.99, "overlap": 1 + np.log(4 / 3)}
    assert (loss > least[objective] - 1e-4).all()
    other, _ = loss_of(tiny, objective)(0 * x, everyone(6) | {"overlap": shares})
    assert np.isfinite(other).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_the_batch_changes_nothing(tiny, objective):
    x = embeddings(6, views=5 if objective == "overlap" else 2)
    targets = {
        "subject": np.array([4, 2, 4, 9, 5, 5]),
        "valid": np.arange(6) != 5,
        "overlap": np.random.default_rng(0).dirichlet(np.ones(4), 6),
    }
    order = np.random.default_rng(1).permutation(6)
    loss = loss_of(tiny, objective)
    one, metrics = loss(x, targets)
    other, others = loss(x[order], {key: value[order] for key, value in targets.items()})
    np.testing.assert_allclose(one[order], other, rtol=1e-4)
    for key, (total, _) in metrics.items():
        np.testing.assert_allclose(total[order], others[key][0], rtol=1e-5)


@pytest.mark.parametrize("objective", ["info_nce", "vicreg"])
def test_the_two_views_are_equals(tiny, objective):
    x, loss = embeddings(6), loss_of(tiny, objective)
    np.testing.assert_allclose(loss(x, everyone(6))[0], loss(x[:, ::-1], everyone(6))[0], rtol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_finite_where_all_embeddings_are_equal(tiny, objective):
    task = build(tiny, objective)
    count = 5 if objective == "overlap" else 2
    crops = jnp.zeros((3, count, 8, 8, 1))
    targets = everyone(3) | {"overlap": jnp.full((3, 4), 0.25)}
    variables = jax.jit(task.network.init)(jax.random.key(0), crops)

    @jax.jit
    @jax.grad
    def gradient(params, crops):
        return task.loss(task.network.apply({"params": params}, crops), targets)[0].mean()

    for inputs in (crops, jnp.ones_like(crops)):
        leaves = jax.tree.leaves(gradient(variables["params"], inputs))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_embeddings_have_unit_length_but_for_vicreg(tiny):
    crops = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 8, 8, 1)), jnp.float32)
    for objective in ("info_nce", "vicreg"):
        network = build(tiny, objective).network
        x = jax.jit(network.init_with_output)(jax.random.key(0), crops)[0]
        assert x.shape == (2, 2, 8)
        of_unit_length = np.allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-4)
        assert of_unit_length == (objective == "info_nce")


# Crops.


def numbered(rank, side=24):
    """An image in which every voxel holds its own coordinates."""
    grid = np.meshgrid(*[np.arange(side)] * rank, indexing="ij")
    return np.stack(grid, axis=-1).astype(np.float16)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(("shared", "zoom"), [(0.0, 0.0), (0.75, 0.0), (0.5, 0.5)])
def test_views_lie_inside_the_crop_and_share_what_they_must(tiny, rank, shared, zoom):
    config = tiny(
        f"contrast{rank}d",
        data__crop=(20,) * rank,
        task__view=(12,) * rank,
        task__min_overlap=shared,
        task__zoom=zoom,
    )
    task, rng = tasks.build(config), np.random.default_rng(0)
    apart = []
    for _ in range(60):
        record = pipeline.arrays(task.record(rng, Example(numbered(rank), None), False))
        starts, rim = record["starts"], (record["crops"].shape[1] - 12) // 2
        assert (rim > 0) == (zoom > 0)
        assert (starts - rim >= 2).all()  # of the central crop
        assert (starts + 12 + rim <= 22).all()
        for crop, start in zip(record["crops"], starts, strict=True):
            np.testing.assert_array_equal(crop[(rim,) * rank], start)
        apart.append(np.abs(starts[0] - starts[1]))
    largest = min(np.floor((1 - shared) * 12), 8 - 2 * rim)
    assert np.max(apart) == largest


@pytest.mark.parametrize("rank", [2, 3])
def test_overlaps_are_counted_voxels(tiny, rank):
    config = tiny(f"contrast{rank}d", task__objective="overlap", task__view=(6,) * rank)
    config.task.coarsen = 1
    config.data.crop = (13,) * rank
    task = tasks.build(config)
    views = jax.jit(lambda key, record: task.views(key, record, True))
    for seed in range(4):
        record = pipeline.arrays(
            task.record(np.random.default_rng(seed), Example(numbered(rank), None), True)
        )
        key = jax.random.key(seed)
        inputs, targets = views(key, jax.tree.map(jnp.asarray, record))
        assert inputs.shape == (1 + 2**rank, *(6,) * rank, rank)
        voxels = [set(map(tuple, crop.reshape(-1, rank).tolist())) for crop in record["crops"]]
        shares = [len(voxels[0] & base) / 6**rank for base in voxels[1:]]
        np.testing.assert_allclose(targets["overlap"], shares, atol=1e-6)
        assert sum(shares) == pytest.approx(1)
        assert not set.intersection(*voxels[1:])


def test_a_zoom_brings_in_no_voxel_from_beyond_the_rim(tiny):
    """A border that differs from the inside would show in the view."""
    config = tiny(
        "contrast2d", task__view=(12, 12), task__zoom=1.0, task__zoom_amount=0.2,
        task__intensity=0.0, task__noise=0.0,
    )  # fmt: skip
    task = tasks.build(config)
    record = pipeline.arrays(
        task.record(np.random.default_rng(0), Example(numbered(2), None), True)
    )
    ramp = jnp.asarray(record["crops"])
    view = jax.jit(lambda key: task.views(key, {**record, "crops": ramp}, True)[0])
    for seed in range(20):
        for one in np.asarray(view(jax.random.key(seed))):
            steps = np.diff(one[..., 0], axis=0)
            # Repeated border voxels would flatten the ramp at its ends.
            assert np.ptp(steps) < 0.05
            assert 1 / 1.21 < steps.mean() < 1 / 0.79


@pytest.mark.parametrize("rank", [2, 3])
def test_views_differ_from_each_other_and_from_key_to_key(tiny, rank):
    task = tasks.build(tiny(f"contrast{rank}d"))
    image = np.random.default_rng(0).normal(size=(*(24,) * rank, 2)).astype(np.float16)
    record = pipeline.arrays(task.record(np.random.default_rng(0), Example(image, None), True))
    record = jax.tree.map(jnp.asarray, record)
    view = jax.jit(lambda key: task.views(key, record, True)[0])
    one, other = (np.asarray(view(jax.random.key(seed))) for seed in (0, 1))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, view(jax.random.key(0)))
    assert not np.allclose(one, other, atol=1e-2)
    assert not np.allclose(one[0], one[1], atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"batch_size": 1}, "config.batch_size=1"),
        ({"task__objective": "nce"}, "config.task.objective='nce'"),
        ({"task__view": (24, 24, 24)}, r"config.task.view=.*zoom"),
        ({"task__view": (12, 12)}, "config.task.view"),
        ({"task__view": (9, 12, 12), "task__coarsen": 2}, "multiples of 2"),
        ({"task__objective": "overlap", "task__view": (14, 14, 14)}, "no two base crops"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tiny, overrides, key):
    with pytest.raises(UserError, match=key):
        tasks.build(tiny("contrast3d", **overrides))
