"""The largest batch, remedies and the roofline, over compilations that are pretended."""

import math

import jax
import pytest

from ssl3d.errors import UserError
from ssl3d.training import ahead_of_time, hlo, planning, targets

CHIP = targets.CHIPS["v5e"]


def operation(**changes):
    given = {"kind": "other", "times": 1, "flops": 0.0, "bytes": 0.0, "dtype": "bf16"}
    return hlo.Operation(**given | changes)


@pytest.mark.parametrize(
    ("one", "bound", "seconds"),
    [
        (operation(flops=197e12, bytes=1e9), "compute", 1.0),
        (operation(flops=1e9, bytes=819e9), "memory", 1.0),
        (operation(bytes=100e9, collective="all-reduce", group=4), "collectives", 1.5),
        (operation(bytes=100e9, collective="all-gather", group=4), "collectives", 0.75),
    ],
)
def test_an_operation_takes_what_bounds_it(one, bound, seconds):
    assert planning.roofline(one, CHIP) == (bound, pytest.approx(seconds))


SCORING = operation(flops=1e12)
UNKNOWN = "a form of XLA's text is unknown"


@pytest.fixture
def pretend(monkeypatch):
    """Pretends that a step needs so many bytes for each example of a device, and 1 GB beside."""

    def function(each, refused=lambda config: False, hosts=1):
        asked = []

        def compile_step(config, data, platform, devices):
            asked.append(config)
            if refused(config):
                raise UserError("refused")
            mesh = len(devices) // config.mesh.space
            share = config.batch_size // mesh
            memory = each * share / config.mesh.space / config.optimizer.accumulate
            memory = 1e9 + memory * (0.7 if config.encoder.remat else 1)
            done = [operation(flops=1e12 * share), operation(bytes=1e9, collective="all-reduce")]
            size = config.batch_size
            unit = math.lcm(mesh, hosts) * config.optimizer.accumulate
            return ahead_of_time.Compiled(
                size, share, unit, memory, 8 * size, 1e12 * size, done, [UNKNOWN], 3.0, False
            )

        monkeypatch.setattr(ahead_of_time, "compile_step", compile_step)
        monkeypatch.setattr(ahead_of_time, "compile_validation", lambda *given: (5, [SCORING]))
        monkeypatch.setattr(targets, "devices", lambda target: jax.devices() * 4)
        return asked

    return function


def planned(config, target, **options):
    return planning.plan(config, targets.parse(target), **options)


def test_the_largest_batch_is_extrapolated_where_compiling_is_dear(tiny, pretend):
    asked = pretend(each=1e9)
    found = planned(tiny("rotation2d", batch_size=8), "v5e:2x2")
    assert found.fits
    assert found.largest_batch == 15 * 4  # 1 + 15 of 16.9 GB
    assert found.largest_batch_is == "extrapolated from 8 and 16"
    assert len(asked) == 2
    assert (found.share, found.bound) == (2, "compute")
    assert (found.validation_batches, found.validation_seconds) == (5, 1e12 / CHIP.bfloat16)
    assert found.validation_share == pytest.approx(5 / (5 + 3 * 2))  # after three steps of two
    assert found.collectives == {"all-reduce": (1, 1e9)}
    assert found.host_volumes == pytest.approx(8 / found.seconds)
    assert found.host_bytes == pytest.approx(8 * found.host_volumes)
    assert UNKNOWN in planning.text(found)
    assert "the compiler's own estimate of the time was not found" in planning.text(found)


def test_the_largest_batch_divides_over_the_hosts_too(tiny, pretend):
    asked = pretend(each=10e9, hosts=4)
    found = planned(tiny("rotation2d", batch_size=16, mesh__space=4), "v5e:2x2")
    assert found.largest_batch == 4  # of 6 that fit
    assert all(config.batch_size % 4 == 0 for config in asked)


def test_the_largest_batch_is_compiled_where_that_is_cheap(tiny, pretend):
    asked = pretend(each=1e9)
    found = planned(tiny("rotation2d", batch_size=8), "h100x4")
    assert (found.largest_batch, found.largest_batch_is) == (62 * 4, "compiled")
    assert {config.batch_size for config in asked} == {8, 16, 248}


def test_one_compilation_seeks_no_largest_batch(tiny, pretend):
    asked = pretend(each=1e9)
    assert planned(tiny("rotation2d", batch_size=8), "h100x4", quick=True).largest_batch == 0
    assert len(asked) == 1


def test_a_config_that_does_not_fit_says_what_would(tiny, pretend):
    pretend(each=8e9, refused=lambda config: config.mesh.space > 2)
    found = planned(tiny("rotation2d", batch_size=64), "h100x4")
    assert not found.fits
    assert found.largest_batch == 7 * 4
    options = [remedy.split(" (")[0] for remedy in found.remedies]
    assert options[0] == "--config.batch_size=28"
    assert "--config.optimizer.accumulate=4" in options
    assert "--config.mesh.space=2" not in options  # half of 128 GB is too much still
    assert all("GB)" in remedy for remedy in found.remedies[1:])
    text = planning.text(found)
    assert "does not fit" in text
    assert "would fit      --config.batch_size=28" in text


def test_rematerialisation_is_proposed_where_it_is_enough(tiny, pretend):
    pretend(each=5e9)
    found = planned(tiny("rotation2d", batch_size=64), "h100x4")
    assert "--config.encoder.remat=True (57.0 GB)" in found.remedies
    pretend(each=8e9)
    found = planned(tiny("rotation2d", batch_size=64), "h100x4")
    assert not any("remat" in remedy for remedy in found.remedies)


def test_where_not_even_the_least_batch_fits_it_is_said(tiny, pretend):
    pretend(each=800e9)
    found = planned(tiny("rotation2d", batch_size=8), "v5e:2x2")
    assert (found.fits, found.largest_batch) == (False, 0)
    assert "even a batch of 4" in found.largest_batch_is
    assert "largest batch  none" in planning.text(found)
