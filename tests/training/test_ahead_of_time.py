"""The step compiled from shapes alone, and what its work grows with."""

import math

import jax
import pytest

from ssl3d.errors import UserError
from ssl3d.training import ahead_of_time, hlo, sharding
from ssl3d.training import step as steps
from tests.support.examples import initial
from tests.support.shipped_configs import PROXY_CONFIGS, get_config


def work(config):
    """Flops of the model, and bytes of a batch."""
    data, _ = ahead_of_time.describe(config)
    lowered, _, _, batch = ahead_of_time.lower_step(config, data, "cpu", jax.devices()[:1])
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)]
    return hlo.flops(hlo.traced(lowered)), sum(sizes)


def test_the_shapes_are_those_of_a_run(tiny, pictures):
    config = tiny("rotation2d", pictures.path)
    ahead_of_time.describe(config)  # adapts it, as the start of a run does
    task, state, batch = initial(config, pictures)
    mesh = sharding.make_mesh(1)
    step = steps.make_step(config, task, steps.make_optimizers(config), mesh)
    lowered = step.lower(state, sharding.to_devices(batch, mesh, task.spatial))
    sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    flops, size = work(config)
    assert flops == hlo.flops(hlo.traced(lowered)) > 0
    assert size == pytest.approx(sizes, abs=4 * 4 * len(batch))  # integers of another width
    # Twice the batch, and as many channels of data that are not prepared.
    config.batch_size, config.data.path = 2 * config.batch_size, "none"
    config.plan.channels = len(pictures.modalities)
    assert work(config) == (2 * flops, 2 * size)


@pytest.mark.parametrize(
    ("name", "flops", "size"),
    [
        ("rpl3d", 6.704e12, 45.28e6),  # 9 patches of 27, in half precision, leave the host
        pytest.param("rotation3d", 8.508e12, 67.11e6, marks=pytest.mark.slow),
    ],
)
def test_the_work_of_a_step_at_the_papers_size_stays_what_it_was(name, flops, size):
    """Those of docs/scaling.md; more of either is a regression that no clock would show."""
    found = work(get_config(name, "ukb"))
    assert found == (pytest.approx(flops, rel=1e-3), pytest.approx(size, rel=1e-3))


def test_a_validation_goes_forward_alone_through_the_cases_that_it_scores(tiny):
    config = tiny("rotation2d", validation__cases=7, validation__repeats=2)
    data, _ = ahead_of_time.describe(config)
    count, found = ahead_of_time.compile_validation(config, data, "cpu", jax.devices()[:1])
    assert count == 4  # of four samples each
    assert work(config)[0] / 3 <= hlo.flops(found) < work(config)[0] / 2


@pytest.mark.parametrize(
    ("name", "key", "limit"),
    [
        # Puzzles share one encoding of the patches.
        ("jigsaw2d", "task__puzzles", 1.3),
        # Queries share that of the centre: 9 encodings in place of 2.
        pytest.param("rpl2d", "task__queries", 5, marks=pytest.mark.slow),
    ],
)
def test_eight_questions_cost_far_less_than_eight_times_one(tiny, name, key, limit):
    one, eight = (work(tiny(name, **{key: count}))[0] for count in (1, 8))
    assert one < eight < limit * one


class Refused:
    """A lowered program whose compiler fails with `message`."""

    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_program_that_the_compiler_finds_too_large_has_its_size():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. {}Exceeded it."
    used = Refused(message.format("Used 25.50G of 15.75G hbm. "))
    assert ahead_of_time.run_compiler(used, "tpu") == ([], 25.5 * 2**30)
    assert ahead_of_time.run_compiler(Refused(message.format("")), "tpu") == ([], math.inf)


def test_a_compiler_that_fails_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"NOT_FOUND: no ptxas.*pip install 'jax\[cuda12\]=="):
        ahead_of_time.run_compiler(Refused("NOT_FOUND: no ptxas\nmore"), "gpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROXY_CONFIGS, "segment2d", "segment3d", "classify3d"])
def test_no_config_needs_its_data(tiny, name):
    flops, size = work(tiny(name))
    assert flops > 0
    assert size > 0
