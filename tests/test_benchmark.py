"""The figures of a config on this machine."""

import json
import math
import subprocess
import sys

import jax
import pytest

from ssl3d import benchmark
from ssl3d.training import ahead_of_time, hlo
from ssl3d.training import benchmark as figures


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(figures, "_SECONDS", 0.1)
    monkeypatch.setattr(figures, "_MATRIX", {"cpu": 64})


def planned_flops(config):
    data, _ = ahead_of_time.describe(config)
    lowered, *_ = ahead_of_time.lower_step(config, data, "cpu", jax.devices()[:1])
    return hlo.flops(hlo.traced(lowered))


def test_the_figures_of_a_config_agree(brief, tiny, tiny_options, pictures, call_command, tmp_path):
    options = tiny_options("rpl2d", pictures.path)
    status, said, _ = call_command(benchmark.main, *options, "--json", f"--profile={tmp_path}")
    assert status == 0
    (line,) = said.splitlines()
    found = figures.Benchmark(**json.loads(line))
    assert found.batch == 4
    assert found.patches == 4 * (1 + 3)  # the centre and three queries
    assert not found.notes
    numbers = found._replace(data_wait=1)[2:-1]
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    assert 0 <= found.data_wait <= 1
    assert found.step_volumes == pytest.approx(4 / found.step_seconds)
    assert found.step_patches == pytest.approx(4 * found.step_volumes)
    share = found.flops / found.step_seconds / found.peak_flops
    assert found.peak_share == pytest.approx(share, rel=1e-6)
    planned = tiny("rpl2d", pictures.path, "folder", encoder__dtype="float32")
    assert found.flops == planned_flops(planned)
    assert list(tmp_path.rglob("*.trace.json.gz")) or list(tmp_path.rglob("*.xplane.pb"))
    head, rule = figures.HEAD.splitlines()
    row = figures.line(found)
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| rpl2d_folder | 4 |")


def test_a_trace_is_of_one_config(tiny_options, pictures, call_command, tmp_path):
    options = tiny_options("rpl2d", pictures.path)
    status, _, error = call_command(benchmark.main, *options, "--suite", f"--profile={tmp_path}")
    assert status == 2
    assert "--profile" in error


def test_a_trace_that_cannot_be_written_is_refused_at_once(
    tiny_options, pictures, call_command, tmp_path, monkeypatch
):
    monkeypatch.setattr(figures, "benchmark", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    options = tiny_options("rpl2d", pictures.path)
    status, _, error = call_command(benchmark.main, *options, f"--profile={tmp_path}/file/trace")
    assert status == 2
    assert "file/trace: Not a directory; fix this" in error


def test_a_suite_leaves_out_what_cannot_be_measured(call_command, monkeypatch, tmp_path):
    """Both configs of a folder, of which one has no data."""
    for name, preset in (("a2d", "retina"), ("b2d", "phantom")):
        (tmp_path / f"{name}.py").write_text(
            "from ssl3d.configs import rpl2d\n"
            f"def get_config(arg='{preset}'):\n    return rpl2d.get_config(arg)\n"
        )
    row = figures.Benchmark("rpl2d_phantom", *range(1, len(figures.Benchmark._fields) - 1))
    row = row._replace(notes=["the figures are too low"])
    measured = json.dumps(row._asdict())
    script = (
        f"import sys; sys.exit('error: no data') if 'a2d' in sys.argv[1] else print({measured!r})"
    )
    run = subprocess.run
    monkeypatch.setattr(
        figures.subprocess,
        "run",
        lambda command, **options: run([sys.executable, "-c", script, command[3]], **options),
    )
    given = [f"--config={tmp_path}/b2d.py", "--suite"]
    status, said, error = call_command(benchmark.main, *given)
    assert status == 0
    assert said.splitlines()[2:] == [figures.line(row), *row.notes]
    assert f"left out: --config={tmp_path}/a2d.py: no data" in error


def test_a_suite_without_a_figure_is_an_error(call_command, tmp_path):
    path = f"--config.data.path={tmp_path}/none"
    (tmp_path / "rpl3d.py").write_text("from ssl3d.configs.rpl3d import get_config\n")
    given = [f"--config={tmp_path}/rpl3d.py:folder", path, "--suite"]
    status, _, error = call_command(benchmark.main, *given)
    assert status == 1
    assert f"left out: --config={tmp_path}/rpl3d.py:folder: " in error
    assert "no prepared data set" in error
    assert "none of the configs could be measured" in error
