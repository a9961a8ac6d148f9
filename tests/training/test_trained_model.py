import dataclasses
import json
import shutil

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.training import checkpoint, loop, problem, run_log, trained_model


@pytest.fixture(scope="module")
def config(tiny, pictures):
    return tiny("classify2d", pictures.path, steps=6, validate_every=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    assert loop.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """The folder of the same run, ended after three steps."""
    workdir = tmp_path_factory.mktemp("stopped")
    assert loop.train(config, workdir, stop_at=3)
    return workdir


def test_best_and_last_are_kept_and_go_on_after_a_stop(config, whole, stopped, tmp_path):
    lines = [line for line in run_log.read_metrics(whole) if line["split"] == "val"]
    assert all({"accuracy", "kappa", "chance"} <= line.keys() for line in lines)
    scores = {line["step"]: line["kappa"] for line in lines if line["step"]}
    best = trained_model.load(whole, "best")
    assert best.step == min(step for step in scores if scores[step] == max(scores.values()))
    assert trained_model.load(whole, "last").step == 6
    shutil.copytree(stopped, tmp_path / "pieces")
    assert loop.train(config, tmp_path / "pieces")
    for kind in trained_model.KINDS:
        files = [
            run / "model" / kind / trained_model.WEIGHTS for run in (whole, tmp_path / "pieces")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_that_failed_after_its_last_checkpoint_gets_its_last_model(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "model" / "last"
    before = {file.name: file.read_bytes() for file in last.iterdir()}
    shutil.rmtree(last)
    assert loop.train(config, tmp_path / "run")
    assert {file.name: file.read_bytes() for file in last.iterdir()} == before


def test_a_model_knows_what_it_needs(whole, pictures):
    loaded = trained_model.load(whole)
    assert loaded.config.task.name == "classification"
    assert (loaded.dataset.classes, loaded.dataset.modalities) == (
        pictures.classes,
        pictures.modalities,
    )
    manager = checkpoint.open_manager(whole)
    assert manager.latest_step() == 6
    manager.close()


def test_damaged_models_are_refused(whole, tmp_path):
    with pytest.raises(UserError, match=r"model\.json: missing"):
        trained_model.load(tmp_path)
    shutil.copytree(whole / "model", tmp_path / "model")
    file = tmp_path / "model" / "last" / trained_model.WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        trained_model.load(tmp_path, "last")
    (tmp_path / "model" / "best" / trained_model.DESCRIPTION).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        trained_model.load(tmp_path, "best")


def test_other_cases_in_the_same_workdir_are_refused(config, stopped, pictures, tmp_path):
    """Splits that were randomised again would train on former test cases."""
    shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(pictures.path, tmp_path / "data")
    swap = {"train": "test", "test": "train", "val": "val"}
    cases = [dataclasses.replace(case, split=swap[case.split]) for case in pictures.cases]
    store.write_manifest(dataclasses.replace(pictures, path=tmp_path / "data", cases=tuple(cases)))
    other = config.copy_and_resolve_references()
    other.data.path = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"cases\.train"):
        loop.train(other, tmp_path / "run")


WEIGHTS = {"params": {"x": np.zeros(1, np.float32)}}


@pytest.fixture
def make_keeper(tiny, pictures, tmp_path):
    """A function: whether the run resumes -> the keeper of its models."""
    given, _ = problem.open_problem(tiny("classify2d", pictures.path))
    return lambda resumed: trained_model.Keeper(given, tmp_path, resumed)


def best_step(workdir):
    file = workdir / "model" / "best" / trained_model.DESCRIPTION
    return json.loads(file.read_text())["step"]


def test_a_best_model_outlives_a_kill(make_keeper, tmp_path):
    """Steps after the last checkpoint are repeated; their best model is still this run's."""
    keeper = make_keeper(resumed=False)
    keeper.offer(100, {"kappa": 0.80}, WEIGHTS)
    keeper.offer(150, {"kappa": 0.85}, WEIGHTS)
    make_keeper(resumed=True).offer(120, {"kappa": 0.5}, WEIGHTS)
    assert best_step(tmp_path) == 150
    make_keeper(resumed=False).offer(20, {"kappa": 0.5}, WEIGHTS)
    assert best_step(tmp_path) == 20


def test_a_best_model_whose_weights_a_kill_left_out_is_saved_again(make_keeper, tmp_path):
    """By a kill between its description and its weights."""
    folder = tmp_path / "model" / "best"
    keeper = make_keeper(resumed=False)
    keeper.offer(100, {"kappa": 0.80}, WEIGHTS)
    first = (folder / trained_model.WEIGHTS).read_bytes()
    before = json.loads((folder / trained_model.DESCRIPTION).read_text())
    better = {"params": {"x": np.ones(1, np.float32)}}
    keeper.offer(150, {"kappa": 0.85}, better)
    half = json.loads((folder / trained_model.DESCRIPTION).read_text()) | {"replaces": before}
    (folder / trained_model.DESCRIPTION).write_text(json.dumps(half))
    (folder / trained_model.WEIGHTS).write_bytes(first)
    make_keeper(resumed=True).offer(150, {"kappa": 0.85}, better)
    assert best_step(tmp_path) == 150
    assert (folder / trained_model.WEIGHTS).read_bytes() != first


def test_an_undefined_score_is_the_lowest(make_keeper, tmp_path):
    keeper = make_keeper(resumed=False)
    for step, score in enumerate((np.nan, np.nan, -1.0, np.nan), start=1):
        keeper.offer(step, {"kappa": score}, WEIGHTS)
    assert best_step(tmp_path) == 3


def test_an_untrained_model_is_not_kept(make_keeper, tmp_path):
    keeper = make_keeper(resumed=False)
    keeper.offer(0, {"kappa": 0.9}, WEIGHTS)
    assert not (tmp_path / "model").exists()
    keeper.save_last(0, WEIGHTS)
    last = json.loads((tmp_path / "model" / "last" / trained_model.DESCRIPTION).read_text())
    assert last["scores"] == {"kappa": 0.9}
