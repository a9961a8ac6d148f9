"""The command that plans for devices that are not at hand."""

import json
import math

import pytest

from ssl3d import plan


@pytest.mark.timeout(200)
def test_a_plan_for_eight_devices(tiny_options, as_typed, pictures):
    options = tiny_options("rotation2d", pictures.path, batch_size=8)
    done = as_typed("ssl3d.plan", *options, "--target=cpu:8", "--json", "--quick")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["devices"], found["batch"], found["share"]) == (8, 8, 1)
    assert found["fits"]
    assert found["memory"] < found["memory_limit"]
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["phases"]["collectives"] > 0
    assert sum(found["phases"].values()) == pytest.approx(found["seconds"])
    assert sum(row["flops"] for row in found["classes"].values()) == found["flops"]
    assert found["model_flops"] == pytest.approx(8 * found["flops"], rel=0.1)
    assert all(math.isfinite(found[key]) for key in ("host_volumes", "host_bytes"))


def test_a_wrong_target_is_one_line(tiny_options, call_command, pictures):
    options = tiny_options("rotation2d", pictures.path)
    status, _, error = call_command(plan.main, *options, "--target=v9:1x1", "--quick")
    assert status == 2
    assert "write a TPU topology" in error
