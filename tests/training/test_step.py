import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d.training import benchmark, sharding
from ssl3d.training import step as steps
from tests.support.examples import batches, initial


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, pictures):
    config = tiny("rpl2d", pictures.path)
    task, state, batch = initial(config, pictures)
    accumulating = config.copy_and_resolve_references()
    accumulating.optimizer.accumulate = 2
    once, twice = (
        jax.jit(steps.make_gradients(each, task))(state, batch) for each in (config, accumulating)
    )
    for one, other in zip(jax.tree.leaves(once[0]), jax.tree.leaves(twice[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    np.testing.assert_allclose(once[2]["loss"], twice[2]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(once[2]["accuracy"], twice[2]["accuracy"])


def test_every_example_and_every_step_gets_draws_of_its_own(tiny, pictures):
    config = tiny("jigsaw2d", pictures.path)
    task, state, batch = initial(config, pictures)

    def spy(outputs, targets):
        """Hands the targets out through the metrics, whose sums are taken over the batch."""
        loss, _ = task.loss(outputs, targets)
        own = jnp.arange(len(loss))
        shown = {
            f"{i} {k}": (jnp.where(own == i, targets["permutation"][:, k], 0), own)
            for i in range(4)
            for k in range(2)
        }
        return loss, shown

    gradients = jax.jit(steps.make_gradients(config, task._replace(loss=spy)))

    def drawn(step):
        metrics = gradients(state | {"step": jnp.int32(step)}, batch)[2]
        return [tuple(int(metrics[f"{i} {k}"][0]) for k in range(2)) for i in range(4)]

    first, second = drawn(0), drawn(1)
    assert drawn(0) == first
    assert first != second
    assert len(set(first)) > 1
    assert len(set(second)) > 1


def test_the_schedule_warms_up_and_ends_at_zero_wherever_the_run_is_stopped(tiny):
    config = tiny("rpl2d", steps=100)
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 10, 0.5
    rates = np.array([steps.schedule(config)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], np.linspace(0.05, 0.5, 10), rtol=1e-5)
    assert rates[10] == pytest.approx(0.5)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[55] == pytest.approx(0.25, rel=1e-3)
    assert rates[100] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("start", "warmup"), [(0, 8), (0, 1), (0, 0), (30, 8), (4, 8)])
def test_no_first_step_has_a_rate_of_zero(tiny, start, warmup):
    config = tiny("rpl2d", steps=100)
    config.optimizer.warmup_steps, config.optimizer.learning_rate = warmup, 0.5
    whole, rate = steps.schedule(config), steps.schedule(config, start)
    later = float(whole(max(start, warmup)))
    assert float(rate(0)) == pytest.approx(later / max(warmup, 1), rel=1e-5)
    assert float(rate(50)) == pytest.approx(float(whole(50 + start)), rel=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_corrected_for_its_bias(decay):
    """Against its definition: the initial value, far from all later ones, has no weight."""
    values = np.random.default_rng(0).normal(size=12)
    mean = {"kernel": jnp.full(2, 1e3)}
    for step, value in enumerate(values, start=1):
        now = {"kernel": jnp.full(2, value, jnp.float32)}
        mean = steps.average(mean, now, decay, jnp.int32(step))
        weights = decay ** np.arange(step)[::-1]
        expected = (weights * values[:step]).sum() / weights.sum()
        np.testing.assert_allclose(mean["kernel"], expected, atol=2e-4)


def test_biases_and_norms_are_not_decayed(tiny):
    config = tiny("rpl2d")
    config.optimizer.weight_decay = 0.1
    optimizer = steps.make_optimizers(config)["rest"]
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert (np.asarray(updates["kernel"]) < 0).all()
    assert (np.asarray(updates["bias"]) == 0).all()


def test_the_thawed_encoder_has_a_warm_up_of_its_own(tiny):
    config = tiny("classify2d", steps=100, optimizer__warmup_steps=10)
    config.transfer.mode, config.transfer.warmup_steps = "finetune", 40
    rate, whole = steps.schedule(config, start=40), steps.schedule(config)
    assert float(rate(0)) == pytest.approx(float(whole(40)) / 10)
    assert float(rate(30)) == pytest.approx(float(whole(70)))
    assert float(rate(60)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["rpl2d", "rotation3d"])
def test_the_steady_state_compiles_and_transfers_nothing(tiny, datasets, name):
    """After the first step: one compiled program, and no transfer beside that of the batch."""
    config = tiny(name, datasets[int(name[-2])].path)
    dataset = datasets[int(name[-2])]
    mesh = sharding.make_mesh(1)
    task, state, _ = initial(config, dataset)
    step = steps.make_step(config, task, steps.make_optimizers(config), mesh)
    stream = batches(config, dataset, task)
    state, _ = step(state, sharding.to_devices(next(stream), mesh, task.spatial))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, metrics = step(state, sharding.to_devices(next(stream), mesh, task.spatial))
        jax.block_until_ready(metrics)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("rpl3d", 1 + 3),  # the centre and three queries
        ("jigsaw3d", 27),  # whatever the number of puzzles
        ("cpc3d", 64),  # each patch once, whatever the number of contexts
        ("rotation3d", 1),
        ("exemplar3d", 2),
        ("mae3d", 1),
    ],
)
def test_nothing_is_encoded_twice(tiny, volumes, name, inputs):
    config = tiny(name, volumes.path)
    task, state, batch = initial(config, volumes)
    calls = []
    with benchmark.count_inputs(calls):
        jax.eval_shape(steps.make_gradients(config, task), state, batch)
    assert sum(calls) == 4 * inputs
