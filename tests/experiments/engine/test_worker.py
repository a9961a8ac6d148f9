import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from ssl3d.errors import DivergedError, UserError
from ssl3d.experiments.analysis import results_table, statistics
from ssl3d.experiments.engine import grid, runs, worker
from ssl3d.experiments.engine.grid import ROOT, Cell
from ssl3d.experiments.engine.study import StudyData
from tests.support.small_study import tiny


def write_evaluation(folder, task, summary, rows):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary | {"task": task}))
    with (folder / "cases.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture
def segmentation(tmp_path):
    values = {
        "c1": {"oedema": 0.5, "core": 0.7, "WT": 0.6},
        "c2": {"oedema": math.nan, "core": 0.3, "WT": 0.4},
        "c3": {"oedema": math.nan, "core": math.nan, "WT": math.nan},
    }
    rows = [
        {
            **{"id": case, "subject": case.upper(), "class": name, "dice": dice},
            "predicted_volume": 0.0 if case == "c3" else 1.5,
        }
        for case, own in values.items()
        for name, dice in own.items()
    ]
    summary = {"classes": ["background", "oedema", "core"], "reference": {"reference_dice": 0.9}}
    return write_evaluation(tmp_path / "evaluation", "segmentation", summary, rows)


def test_columns_of_a_segmentation(segmentation):
    columns = [("dice", "mean"), ("core", 2), ("WT", "WT")]
    cases, scores = worker.read_evaluation(segmentation, columns)
    assert cases == [
        {"id": "c1", "subject": "C1", "dice": 0.6, "core": 0.7, "WT": 0.6},
        {"id": "c2", "subject": "C2", "dice": 0.3, "core": 0.3, "WT": 0.4},
        {"id": "c3", "subject": "C3", "dice": None, "core": None, "WT": None},
    ]
    assert scores == pytest.approx({"dice": 0.45, "core": 0.5, "WT": 0.5, "reference_dice": 0.9})
    for missing in ("TC", 3):
        with pytest.raises(UserError, match="no class or region"):
            worker.read_evaluation(segmentation, [("x", missing)])


def test_regions_that_a_case_lacks_as_the_challenge_scores_them(segmentation):
    """1 if nothing is predicted either, and 0 else; ours leaves such cases out."""
    columns = [("oedema", 1), ("oedema (BraTS)", "oedema as in BraTS")]
    cases, scores = worker.read_evaluation(segmentation, columns)
    assert [case["oedema (BraTS)"] for case in cases] == [0.5, 0.0, 1.0]
    assert scores["oedema"] == 0.5
    assert scores["oedema (BraTS)"] == 0.5


@pytest.fixture
def job(volumes, tmp_path):
    """A cell, and its folder."""
    study = tiny()
    (found,) = grid.jobs(StudyData(study, volumes, volumes), [Cell("scratch", "random", "2", 1)])
    (tmp_path / "run").mkdir()
    about = {"spent": 0.0, "launched": 0.0}
    return json.loads(json.dumps(vars(found) | about)), tmp_path


def test_a_diverged_cell_counts(job, monkeypatch):
    """With the score of a network that knows nothing; left out it would flatter its method."""
    job, folder = job
    lines = [{"step": 0, "split": "val", "loss": 1.0, "dice": 0.1, "reference_soft_dice": 0.3}]

    def diverge(config, workdir):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)
        raise DivergedError("step 4: loss nan, gradient norm nan; lower the rate")

    monkeypatch.setattr(worker.loop, "train", diverge)
    result = worker.run(job, folder)
    assert result["row"]["diverged"] == "step 4"
    assert result["row"]["dice"] == 0
    assert result["row"]["reference_soft_dice"] == 0.3
    assert result["curve"] == [[0, 0.1]]
    assert len(result["cases"]) == 2
    assert {case["dice"] for case in result["cases"]} == {0}
    # Cases that are at fault from the start do not count, nor does a run that is timed.
    with pytest.raises(DivergedError):
        worker.run(job | {"row": {**job["row"], "probe": True}}, folder)
    lines.clear()
    with pytest.raises(DivergedError):
        worker.run(job, folder)


def test_grades_of_a_diverged_cell_have_a_kappa_of_zero(pictures):
    job = {"overrides": {"data.path": str(pictures.path)}, "columns": [["kappa", "kappa"]]}
    cases, scores = worker.diverged_scores(job)
    assert scores == {"kappa": 0}
    grades = np.array([int(case["grade"]) for case in cases])
    kappa = statistics.kappa_score(grades, np.zeros(len(grades), int), len(pictures.classes))
    assert kappa(np.ones((1, len(grades)))) == 0


def test_the_code_is_that_which_ran(job, monkeypatch):
    """Not that of the command: a study may go on after an update, or on another host."""
    job, folder = job
    monkeypatch.setattr(worker, "versions", lambda: {"draws": 99, "code": "of the worker"})
    monkeypatch.setattr(worker.loop, "train", lambda config, workdir: True)
    monkeypatch.setattr(worker, "test", lambda job, workdir: ([], {"dice": 0.5}))
    row = worker.run(job | {"row": {**job["row"], "code": "of the command"}}, folder)["row"]
    assert (row["draws"], row["code"]) == (99, "of the worker")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["finished"])
    assert "code" not in job["row"]


def test_columns_of_a_classification(tmp_path):
    rows = [{"id": "a", "subject": "A", "grade": 2, "predicted": 1, "probability x": 0.1}]
    summary = {
        "scores": {"kappa": {"value": 0.7}},
        "reference": {"reference_qw_kappa_kaggle": None},
    }
    folder = write_evaluation(tmp_path / "evaluation", "classification", summary, rows)
    cases, scores = worker.read_evaluation(folder, [("kappa", "kappa")])
    assert cases == [{"id": "a", "subject": "A", "grade": "2", "predicted": "1"}]
    assert scores == {"kappa": 0.7, "reference_kappa": None}


def test_the_last_model_is_tested(segmentation, tmp_path, monkeypatch):
    """The best by validation would use labels that count to no method's amount."""
    called = []

    def evaluate(options):
        called.extend(options)
        (output,) = (x.removeprefix("--output=") for x in options if x.startswith("--output="))
        segmentation.rename(output)

    monkeypatch.setattr(worker.evaluate, "main", evaluate)
    job = {"columns": [["WT", "WT"]], "overrides": {"data.path": "data"}, "source": "source"}
    (tmp_path / "run").mkdir()
    cases, scores = worker.test(job, tmp_path / "run")
    assert {"--model=last", "--split=test", "--data=data", "--source=source"} <= set(called)
    assert scores["WT"] == 0.5
    assert [case["id"] for case in cases] == ["c1", "c2", "c3"]


def test_device_seconds_leave_out_validation():
    lines = [
        {"step": 10, "volumes_per_second": 8.0, "data_wait": 0.0},
        {"step": 15, "volumes_per_second": 4.0, "data_wait": 0.5},
    ]
    assert worker.device_seconds(lines, batch_size=4) == pytest.approx(40 / 8 + 20 / 4)


def test_without_its_parent_it_ends(tmp_path):
    """Its standard input closes when the process that started it is gone."""
    job = {"row": {}, "config": "", "argument": "", "overrides": {}}
    (tmp_path / worker.JOB).write_text(json.dumps(job))
    command = [sys.executable, "-m", "ssl3d.experiments.engine.worker", str(tmp_path)]
    with filelock.FileLock(tmp_path / ".lock"):  # as another worker, which this one waits for
        process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.stdin.close()
        assert process.wait(timeout=30) == -15


def test_what_another_process_has_finished_meanwhile_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    (tmp_path / worker.RESULT).write_text("{}")
    assert worker.main([str(tmp_path)]) == 0
    assert (tmp_path / worker.RESULT).read_text() == "{}"


def test_cells_of_a_diverged_pretraining_count(volumes, tmp_path, monkeypatch):
    """Otherwise one seed in eight would leave the study without a verdict."""
    monkeypatch.chdir(tmp_path)
    cells = [Cell("rpl3d", "finetune", "2", 1, 1)]
    (job,) = grid.jobs(StudyData(tiny(), volumes, volumes), cells)
    line = {"step": 0, "split": "val", "loss": 1.0, "accuracy": 0.1, "chance": 0.04}

    def diverge(config, workdir):
        assert workdir.parts[0] == grid.PRETRAINING, "there is no encoder to start from"
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        raise DivergedError("step 4: loss nan, gradient norm nan; lower the rate")

    monkeypatch.setattr(worker.loop, "train", diverge)
    for one, needs in ((job.needs, None), (job, job.needs.name)):
        folder = tmp_path / one.name
        folder.mkdir(parents=True)
        about = vars(one) | {"needs": needs, "spent": 0.0, "launched": 0.0}
        result = worker.run(json.loads(json.dumps(about)), Path(one.name))
        (folder / runs.RESULT).write_text(json.dumps(result))
    record = results_table.read(tmp_path)
    (trained,), (cell,) = (table.to_dict("records") for table in record[:2][::-1])
    assert (trained["diverged"], trained["untrained_score"]) == ("step 4", "0.1")
    assert "trained_score" not in trained
    assert (cell["diverged"], cell["dice"]) == ("pretraining, step 4", "0.0")
    assert set(record.cases[cell["cell"]]) == {"0.0"}
