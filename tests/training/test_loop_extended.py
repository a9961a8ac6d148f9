"""A run that is made longer: the same command with more steps."""

import json
import shutil

import pytest

from ssl3d.errors import UserError
from ssl3d.models import export
from ssl3d.training import loop, run_log, step


@pytest.fixture(scope="module")
def config(tiny, pictures):
    return tiny("rotation2d", pictures.path, steps=4, checkpoint_every=1, optimizer__ema=0.5)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of a run of four steps."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def longer(config):
    """The same config with seven steps."""
    longer = config.copy_and_resolve_references()
    longer.steps = 7
    return longer


@pytest.fixture(scope="module")
def extended(finished, longer, tmp_path_factory):
    """The folder of the same run, extended at once."""
    workdir = tmp_path_factory.mktemp("runs") / "extended"
    shutil.copytree(finished, workdir)
    assert loop.train(longer, workdir)
    return workdir


def weights(workdir):
    return (workdir / "encoder" / "encoder.safetensors").read_bytes()


def test_a_finished_run_goes_on_from_its_last_step(finished, extended):
    lines, before = run_log.read_metrics(extended), run_log.read_metrics(finished)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 8))
    assert lines[: len(before)] == before
    assert json.loads((extended / "config.json").read_text())["steps_before"] == [4]
    about = export.describe_encoder(extended)
    assert (about["step"], about["steps"]) == (7, 7)
    assert weights(extended) != weights(finished)


@pytest.mark.slow
def test_it_ends_the_same_however_often_it_is_stopped(finished, longer, extended, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    for stop in (5, 0):
        assert loop.train(longer, tmp_path / "run", stop_at=stop)
    said = capsys.readouterr().out
    assert "going on at step 4 of 7" in said
    assert said.count("extended from 4 to 7 steps: the learning rate follows the cosine") == 1
    assert weights(tmp_path / "run") == weights(extended)


@pytest.mark.slow
def test_an_unfinished_run_can_be_extended_too(config, longer, tmp_path, capsys):
    assert loop.train(config, tmp_path, stop_at=2)
    assert loop.train(longer, tmp_path)
    assert "going on at step 2 of 7" in capsys.readouterr().out
    assert export.describe_encoder(tmp_path)["step"] == 7


def test_a_run_does_not_become_shorter(config, extended):
    before = weights(extended)
    with pytest.raises(UserError, match=r"holds a run of 7 steps, .* not shorter: .*steps=7 or"):
        loop.train(config, extended)
    assert weights(extended) == before


def test_the_rate_follows_the_longer_cosine_at_once(config, finished):
    """It rises from the end of the shorter cosine to the middle of the longer one."""
    lines = [line for line in run_log.read_metrics(finished) if line["split"] == "train"]
    doubled = config.copy_and_resolve_references()
    doubled.steps = 8
    for line in lines:
        rate = step.learning_rates(config, line["step"])["learning_rate"]
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-3)
        assert step.learning_rates(doubled, line["step"])["learning_rate"] >= rate
    after = step.learning_rates(doubled, 5)["learning_rate"]
    assert 0.4 < after / config.optimizer.learning_rate < 0.7
    assert after > lines[-1]["learning_rate"]
