"""The table of proxy tasks at equal cost."""

import pandas as pd
import pytest

from ssl3d.errors import UserError
from ssl3d.experiments import equal_cost


@pytest.fixture
def options(volumes, tmp_path):
    return [f"--data={volumes.path}", f"--output={tmp_path / 'out'}", "--preset=phantom_brain"]


@pytest.fixture
def measured(monkeypatch):
    """No training: the figures are made up, and the tasks asked for are kept."""
    asked = []

    def figures(name, options):
        asked.append(name)
        return {"steps": 10, "pretrained_encoder": 0.5}

    monkeypatch.setattr("ssl3d.experiments.engine.equal_cost.train_and_probe", figures)
    return asked


def test_every_proxy_task_has_a_row_and_finished_ones_are_kept(options, measured, tmp_path):
    equal_cost.main([*options, "--tasks=rpl,mae"])
    equal_cost.main(options)
    assert measured[:2] == ["rpl", "mae"]
    assert sorted(measured) == sorted(
        ["contrast", "cpc", "exemplar", "jigsaw", "joint", "mae", "rotation", "rpl"]
    )
    table = pd.read_csv(tmp_path / "out" / "equal_cost.csv")
    assert sorted(table.task) == sorted(measured)
    equal_cost.main([*options, "--rank=2", "--tasks=rpl"])
    assert measured[-1] == "rpl"


def test_a_task_with_labels_is_refused(options):
    with pytest.raises(UserError, match="no proxy task 'segmentation'"):
        equal_cost.main([*options, "--tasks=segmentation"])


@pytest.mark.slow
def test_a_task_is_trained_for_the_time_and_probed(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    equal_cost.main([f"--data={data}", f"--output={out}", "--tasks=rotation", "--minutes=2"])
    (row,) = pd.read_csv(out / "equal_cost.csv").to_dict("records")
    assert row["seconds"] == pytest.approx(120, rel=0.4)
    assert row["steps"] > 24
    assert 0 <= row["low"] <= row["pretrained_encoder"] <= row["high"] <= 1
    assert row["peak_mb"] > 100
