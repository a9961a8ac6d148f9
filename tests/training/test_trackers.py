"""What trackers receive; Weights & Biases and MLflow are made up."""

import json
import math
import sys
import types

import ml_collections
import numpy as np
import pytest
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from ssl3d.errors import UserError
from ssl3d.training import loop, trackers
from tests.support.event_files import summaries

PICTURE = np.zeros((4, 6, 3), np.uint8)


def settings(**log):
    return ml_collections.ConfigDict(
        {
            "name": "a run",
            "steps": 10,
            "data": {"crop": (8, 8)},
            "log": {"wandb": "", "mlflow": ""} | log,
        }
    )


class Recorder:
    """Stands in for a package: records each call as (name, arguments, options)."""

    def __init__(self):
        self.calls = []
        self.fail = ""

    def call(self, name, result=None):
        def function(*arguments, **options):
            self.calls.append((name, arguments, options))
            if self.fail and self.fail in name:
                raise ConnectionError("no route\nto host")
            return result

        return function

    def named(self, name):
        return [(given, options) for called, given, options in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb`, and what it is told."""
    told = Recorder()
    run = types.SimpleNamespace(
        id="abc123",
        config=types.SimpleNamespace(update=told.call("config.update")),
        log=told.call("log"),
        define_metric=told.call("define_metric"),
        finish=told.call("finish"),
    )
    module = types.SimpleNamespace(init=told.call("init", run), Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


@pytest.fixture
def mlflow(monkeypatch):
    """A module `mlflow`, and what it is told."""
    told = Recorder()
    begun = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    functions = {
        name: told.call(name)
        for name in ("set_experiment", "log_params", "log_metrics", "log_image", "end_run")
    }
    module = types.SimpleNamespace(start_run=told.call("start_run", begun), **functions)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return told


def use(config, workdir, say=print):
    tracked = trackers.Trackers(config, workdir, 0, "val/accuracy", say)
    tracked.scalars(3, {"train/loss": 0.5, "train/kappa": math.nan})
    tracked.picture(4, "inspect", PICTURE)
    tracked.close()


def test_tensorboard_has_the_settings_and_the_score_to_compare(tmp_path):
    use(settings(), tmp_path)
    assert not (tmp_path / trackers.RUNS).exists()
    found = {value.tag: value for _, value in summaries(tmp_path)}
    assert {"train/loss", "inspect"} <= found.keys()

    def plugin(name):
        return HParamsPluginData.FromString(found[name].metadata.plugin_data.content)

    given = plugin("_hparams_/session_start_info").session_start_info.hparams
    assert given["steps"].number_value == 10
    assert given["data.crop"].string_value == "(8, 8)"
    metrics = plugin("_hparams_/experiment").experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/accuracy"]


def test_an_undefined_score_is_no_warning(tmp_path, caplog):
    use(settings(), tmp_path)
    assert not caplog.records
    assert "train/kappa" not in {value.tag for _, value in summaries(tmp_path)}


def test_wandb_is_told_the_same_and_resumed(wandb, tmp_path):
    for expected in (None, "abc123"):
        use(settings(wandb="heads"), tmp_path)
        ((_, options),) = wandb.named("init")
        assert options["id"] == expected
        assert (options["project"], options["name"]) == ("heads", "a run")
        assert options["dir"] == str(tmp_path)
        ((given, options),) = wandb.named("config.update")
        assert given[0]["data.crop"] == "(8, 8)"
        assert options == {"allow_val_change": True}
        scalars, picture = wandb.named("log")
        # On an axis of our own: its steps cannot go back to the last checkpoint.
        assert (("*",), {"step_metric": "step"}) in wandb.named("define_metric")
        assert scalars[0][0] | {"train/kappa": 0} == {
            "step": 3, "train/loss": 0.5, "train/kappa": 0,
        }  # fmt: skip
        assert picture[0][0] == {"step": 4, "inspect": PICTURE}
        assert scalars[1] == picture[1] == {}
        assert wandb.named("finish")
        wandb.calls.clear()


def test_mlflow_is_told_the_same_and_resumed(mlflow, tmp_path):
    for expected in (None, "r1"):
        use(settings(mlflow="heads"), tmp_path)
        assert mlflow.named("set_experiment") == [(("heads",), {})]
        assert mlflow.named("start_run") == [((), {"run_id": expected, "run_name": "a run"})]
        # Its settings cannot change.
        assert bool(mlflow.named("log_params")) == (expected is None)
        assert mlflow.named("log_metrics") == [(({"train/loss": 0.5},), {"step": 3})]
        ((given, options),) = mlflow.named("log_image")
        assert given[0] is PICTURE
        assert options == {"artifact_file": "inspect/00000004.png"}
        assert mlflow.named("end_run")
        mlflow.calls.clear()
    assert json.loads((tmp_path / trackers.RUNS).read_text()) == {"mlflow": "r1"}


@pytest.mark.parametrize("key", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named_before_anything_is_read(
    tiny, tmp_path, monkeypatch, key
):
    monkeypatch.setitem(sys.modules, key, None)
    config = tiny("rpl2d", tmp_path / "nowhere", **{f"log__{key}": "heads"})
    with pytest.raises(UserError, match=rf"config\.log\.{key}='heads': .*`pip install {key}`"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_is_an_error(wandb, tmp_path):
    wandb.fail = "init"
    with pytest.raises(UserError, match=r"config\.log\.wandb='heads': .* \(no route to host\)"):
        use(settings(wandb="heads"), tmp_path)


def test_a_tracker_that_fails_later_stops_nothing(wandb, mlflow, tmp_path):
    wandb.fail = "log"
    said = []
    use(settings(wandb="heads", mlflow="heads"), tmp_path, said.append)
    assert said == ["wandb: no route to host; training goes on without it"]
    assert len(wandb.named("log")) == 1
    assert mlflow.named("log_image")
    assert "inspect" in {value.tag for _, value in summaries(tmp_path)}


def test_what_cannot_be_written_to_the_run_is_an_error(tmp_path, monkeypatch):
    tracked = trackers.Trackers(settings(), tmp_path, 0, "val/accuracy")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.TensorBoard, "scalars", full)
    with pytest.raises(OSError, match="No space left"):
        tracked.scalars(1, {"loss": 1.0})
