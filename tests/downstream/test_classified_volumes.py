"""Classes of volumes, from a folder and a table to predictions."""

import csv
import json

import numpy as np
import pytest

from ssl3d import evaluate, predict, prepare
from ssl3d.data import store
from ssl3d.training import loop, run_log
from tests.support.source_files import scan, write_nifti

CLASSES = ("benign", "malignant")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A dozen volumes; every other one has a bright middle."""
    folder = tmp_path_factory.mktemp("volumes")
    for number in range(12):
        image = scan(number)
        image[8:12, 8:12, 7:11] += 300 * (number % 2)
        write_nifti(folder / f"scans/p{number:02d}.nii.gz", image, np.eye(4))
    rows = (f"p{number:02d},{CLASSES[number % 2]}\n" for number in range(12))
    (folder / "labels.csv").write_text("patient,diagnosis\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared")
    arguments = ["--layout=folder", "--recipe=mr", f"--source={source / 'scans'}", "--crop=no"]
    arguments += [f"--csv={source / 'labels.csv'}", f"--output={output}", "--workers=1"]
    prepare.main([*arguments, "--val=0.3", "--test=0.3"])
    return store.read(output)


@pytest.fixture(scope="module")
def workdir(tiny, prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny(
        "classify3d", prepared.path, argument="folder", data__crop=(16, 16, 16), batch_size=2,
        steps=2, validate_every=2, encoder__dtype="float32",
    )  # fmt: skip
    assert loop.train(config, folder)
    return folder


def test_the_prepared_volumes_have_their_classes(prepared):
    assert prepared.classes == CLASSES
    assert prepared.rank == 3
    assert all(case.grade == int(case.id[-2:]) % 2 for case in prepared.cases)
    assert {case.split for case in prepared.cases} == {"train", "val", "test"}


def test_the_best_model_is_selected_by_balanced_accuracy(workdir):
    best = json.loads((workdir / "model/best/model.json").read_text())
    last = [line for line in run_log.read_metrics(workdir) if line["split"] == "val"][-1]
    assert best["config"]["task"]["select_by"] == "balanced_accuracy"
    assert best["best"] == pytest.approx(last["balanced_accuracy"])
    assert {"kappa", "auroc"} <= last.keys()


def test_an_evaluation_tells_sensitivity_and_specificity_of_each_class(workdir, tmp_path, capsys):
    evaluate.main([f"--workdir={workdir}", f"--output={tmp_path}", "--no-pictures"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["by_class"]) == list(CLASSES)
    confusion = np.array(summary["confusion"])
    for k, name in enumerate(CLASSES):
        found = summary["by_class"][name]
        assert found["cases"] == confusion[k].sum()
        expected = confusion[k, k] / confusion[k].sum()
        assert found["sensitivity"]["value"] == pytest.approx(expected)
    assert "balanced_accuracy" in summary["scores"]
    said = capsys.readouterr().out
    assert "balanced accuracy" in said
    assert "sensitivity / specificity: benign " in said


def test_new_volumes_are_predicted(workdir, source, tmp_path):
    predict.main([f"--workdir={workdir}", f"--input={source / 'scans'}", f"--output={tmp_path}"])
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"p{number:02d}" for number in range(12)]
    assert {row["class"] for row in rows} <= set(CLASSES)
