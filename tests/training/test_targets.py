"""The devices to plan for."""

import importlib.util

import pytest

from ssl3d.errors import UserError
from ssl3d.training import targets


@pytest.mark.parametrize(
    ("name", "kind", "shape", "platform"),
    [
        ("v5e:2x2", "v5e", "2x2", "tpu"),
        ("v5p:2x2x1", "v5p", "2x2x1", "tpu"),
        ("h100x8", "h100", "8", "gpu"),
        ("a100x16", "a100", "16", "gpu"),
        ("cpu:8", "cpu", "8", "cpu"),
    ],
)
def test_a_target_is_a_chip_and_how_many(name, kind, shape, platform):
    target = targets.parse(name)
    assert target == (name, kind, shape)
    assert target.chip.platform == platform
    assert target.chip.memory > 1e8


@pytest.mark.parametrize(
    "name", ["", "v9:2x2", "v5e", "h100", "h100x0", "h100x12", "cpu:-1", "cpu"]
)
def test_another_target_is_refused(name):
    with pytest.raises(UserError, match="--target="):
        targets.parse(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100x8", "cuda12")])
def test_a_compiler_that_is_missing_is_named_with_its_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jax\[{extra}\]=="):
        targets.devices(targets.parse(name))


def test_the_environment_lets_jax_start_on_the_cpu_alone():
    for name, flag in (("cpu:8", "device_count=8"), ("h100x8", "autotune"), ("v5e:2x2", "--mine")):
        variables = {"XLA_FLAGS": "--mine"}
        targets.environment(targets.parse(name), variables)
        assert variables["JAX_PLATFORMS"] == "cpu"
        assert variables["XLA_FLAGS"].startswith("--mine")
        assert flag in variables["XLA_FLAGS"]
