"""docs/tasks.md adds a task outside the repository; its code and commands are run here as they are.

Only the data set and the sizes are this test's, for the run to take seconds.
"""

import importlib
import re
import shlex

import jax
import numpy as np
import pytest

from ssl3d.models import heads, load_encoder
from ssl3d.training import run_log

TINY = (
    "data.phantom.kind=", "data.crop=(16,16,16)", "encoder.width=4", "encoder.depth=2",
    "head.hidden=(8,)", "optimizer.warmup_steps=1", "batch_size=4", "steps=4", "log_every=1",
    "validate_every=2", "checkpoint_every=2", "validation.repeats=1", "data.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def section(request):
    text = (request.config.rootpath / "docs" / "tasks.md").read_text()
    return text[text.index("## Adding a task") :]


@pytest.fixture
def commands(section, tmp_path, volumes):
    """The commands of the walkthrough, as (module, arguments), after its files are written."""
    names = re.findall(r"`\.\./mine/(\S+\.py)`", section)
    codes = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert names == ["my_package/flip.py", "my_package/flip3d.py"]
    for name, code in zip(names, codes, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    overrides = [f"--config.{setting}" for setting in (*TINY, f"data.path={volumes.path}")]
    places = {"../mine": str(tmp_path), "runs/flip": str(tmp_path / "run"), "=500": "=2"}
    places["flip.png"] = str(tmp_path / "flip.png")
    found = []
    for line in block.splitlines():
        for place, own in places.items():
            line = line.replace(place, own)
        python, _, module, *arguments = shlex.split(line)
        assert python == "python"
        found.append((module, [*arguments, *overrides]))
    return found


def run(call_command, module, arguments):
    status, said, error = call_command(importlib.import_module(module).main, *arguments)
    assert status == 0, error
    return said


def test_walkthrough_is_short(section):
    assert len(section.splitlines()) < 60


def test_a_task_outside_the_repository(commands, call_command, tmp_path):
    inspect, stop, resume = commands
    run(call_command, *inspect)
    assert (tmp_path / "flip.png").stat().st_size > 10_000

    assert "stopped at step 2 of 4" in run(call_command, *stop)
    said = run(call_command, *resume)
    assert "going on at step 2 of 4" in said
    assert said.splitlines()[-1].endswith(f"encoder in {tmp_path / 'run' / 'encoder'}")

    lines = run_log.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "val"] == [0, 2, 4]
    assert [line["step"] for line in lines if line["split"] == "probe"] == [0, 1, 2, 3, 4]
    for line in lines:
        if line["split"] == "probe":
            continue
        assert np.isfinite(line["loss"])
        assert line["chance"] == pytest.approx(1 / 4)
        if line["split"] == "val":
            assert line["accuracy_low"] <= line["accuracy"] <= line["accuracy_high"]

    module, arguments = resume
    others = [text.replace(str(tmp_path / "run"), str(tmp_path / "whole")) for text in arguments]
    run(call_command, module, others)
    weights = [tmp_path / name / "encoder" / "encoder.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    encoder, variables = load_encoder(tmp_path / "run")
    features = jax.jit(encoder.apply)(variables, np.ones((1, 16, 16, 16, 2), np.float32))
    assert heads.pooled(features).shape == (1, 8)
