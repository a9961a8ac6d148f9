import dataclasses
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from ssl3d import evaluate, metrics
from ssl3d.data import store
from ssl3d.data.pipeline import OUTSIDE
from ssl3d.downstream import predictor, segmentation_scores
from ssl3d.errors import UserError
from tests.support.datasets import forget_digests
from tests.support.evaluating import AFFINE, SHAPE, assert_pictures, dice, read, run

VALUES = {0: 0, 2: 1, 5: 2}  # label value in the files -> class


def assert_scores(workdir, dataset, rows, summary, kind="best"):
    """The rows are what one gets from the predictions by hand, the summary what from the rows."""
    trained = predictor.load(workdir, kind)
    cases = dataset.split("test")
    assert [row["id"] for row in rows] == [case.id for case in cases]
    confusion = np.zeros((2, 2), int)
    for row, case in zip(rows, cases, strict=True):
        prediction = predictor.segment(trained, store.load_image(dataset, case)).argmax(-1)
        truth = np.asarray(store.load_label(dataset, case))
        assert float(row["dice"]) == pytest.approx(dice(prediction, truth, 1), abs=1e-12)
        assert float(row["reference_volume"]) == pytest.approx((truth == 1).sum() / 1000)
        assert float(row["predicted_volume"]) == pytest.approx((prediction == 1).sum() / 1000)
        assert row["class"] == "bright"
        assert row["subject"] == case.subject
        np.add.at(confusion, (truth, prediction), 1)
    for score in metrics.SEGMENTATION_SCORES:
        values = np.array([float(row[score]) for row in rows])
        for part in (summary["scores"]["bright"][score], summary["mean_foreground"][score]):
            assert part["valid"] == np.isfinite(values).sum()
            if part["valid"]:
                assert part["mean"] == pytest.approx(np.nanmean(values))
                assert part["median"] == pytest.approx(np.nanmedian(values))
    pooled = 2 * np.diag(confusion) / (confusion.sum(0) + confusion.sum(1))
    assert summary["reference"]["reference_dice"] == pytest.approx(pooled.mean())


def test_scores_of_a_segmentation_by_hand(segmented, volumes, capsys):
    rows, summary = run(segmented)
    first, last = capsys.readouterr().out.splitlines()
    assert f"the best model, of step {summary['model']['step']}, on 2 test cases" in first
    assert first.endswith(segmentation_scores.PREPARED)
    assert f"Dice {summary['mean_foreground']['dice']['mean']:.3f}" in last
    assert_scores(segmented, volumes, rows, summary)
    assert summary["grid"] == segmentation_scores.PREPARED
    assert (summary["split"], summary["cases"], summary["model"]["kind"]) == ("test", 2, "best")
    assert summary["classes"] == ["background", "bright"]
    assert_pictures(segmented / "evaluation", "best.png", "median.png", "worst.png")


def test_the_last_model_another_split_and_another_folder(segmented, volumes, tmp_path):
    output = tmp_path / "deep/er"
    evaluate.main([f"--workdir={segmented}", "--model=last", f"--output={output}"])
    rows, summary = read(output)
    assert summary["model"] == {"kind": "last", "step": 2}
    assert_scores(segmented, volumes, rows, summary, "last")

    (output / "mine.txt").write_text("kept")
    (output / "mistakes.png").write_text("of an earlier evaluation")
    evaluate.main([f"--workdir={segmented}", "--split=val", f"--output={output}"])
    rows, summary = read(output)
    assert [row["id"] for row in rows] == [case.id for case in volumes.split("val")]
    assert (summary["split"], summary["cases"]) == ("val", 4)
    names = {"cases.csv", "summary.json", "best.png", "median.png", "worst.png", "mine.txt"}
    assert {path.name for path in output.iterdir()} == names


def test_a_model_of_slices_is_scored_on_whole_volumes(save_model, volumes, tmp_path):
    save_model(tmp_path, volumes, "segment2d")
    rows, summary = run(tmp_path)
    assert_scores(tmp_path, volumes, rows, summary)
    assert_pictures(tmp_path / "evaluation", "best.png", "median.png", "worst.png")


def voxels_of_source(case):
    """Where the voxels of the source lie in the prepared image, [3, *SHAPE]."""
    indices = np.concatenate([np.indices(SHAPE), np.ones((1, *SHAPE))])
    affine = np.linalg.inv(np.array(case.affine)) @ AFFINE
    return np.tensordot(affine, indices, 1)[:3]


def by_hand(workdir, dataset, scans, case):
    """Prediction and truth on the source's grid, found voxel by voxel."""
    probabilities = predictor.segment(predictor.load(workdir), store.load_image(dataset, case))
    places = voxels_of_source(case)
    sides = np.array(case.shape)[:, None, None, None]
    inside = ((places > -0.501) & (places < sides - 0.499)).all(0)
    maps = [
        ndimage.map_coordinates(channel, places, order=1, mode="nearest")
        for channel in np.moveaxis(probabilities, -1, 0)
    ]
    prediction = np.where(inside, np.argmax(maps, 0), 0)
    label = nib.load(scans / case.extra["source"][-1])
    indices = np.concatenate([np.indices(SHAPE), np.ones((1, *SHAPE))])
    places = np.tensordot(np.linalg.inv(label.affine) @ AFFINE, indices, 1)[:3]
    values = np.asarray(label.dataobj)[tuple(np.rint(places).astype(int))]
    return prediction, np.vectorize(VALUES.get)(values)


@pytest.mark.parametrize(
    ("kind", "workdir"), [("exact", "scanned"), ("resampled", "scanned_resampled")]
)
def test_scores_on_the_grid_of_the_source(scans, kind, workdir, request, capsys):
    dataset, scanned = request.getfixturevalue(kind), request.getfixturevalue(workdir)
    capsys.readouterr()
    rows, summary = run(scanned, f"--data={dataset.path}", f"--source={scans}")
    assert capsys.readouterr().out.splitlines()[0].endswith(segmentation_scores.SOURCE)
    assert summary["grid"] == segmentation_scores.SOURCE
    assert summary["classes"] == ["nothing", "liver", "tumour"]
    (case,) = dataset.split("test")
    assert [(row["id"], row["class"]) for row in rows] == [(case.id, "liver"), (case.id, "tumour")]
    prediction, truth = by_hand(scanned, dataset, scans, case)
    assert (np.bincount(truth.ravel(), minlength=3) > 50).all()
    scored = segmentation_scores.predict_case(
        predictor.load(scanned), dataset, case, segmentation_scores.SOURCE, scans
    )
    assert scored.spacing == pytest.approx((2, 1, 1.5))
    np.testing.assert_array_equal(scored.truth, truth)
    assert (scored.prediction != prediction).mean() < 1e-3  # ties of interpolated probabilities
    for index, row in enumerate(rows, start=1):
        assert float(row["dice"]) == pytest.approx(dice(prediction, truth, index), abs=5e-3)
        assert float(row["reference_volume"]) == pytest.approx((truth == index).sum() * 3 / 1000)
    means = [float(row["dice"]) for row in rows]
    assert summary["mean_foreground"]["dice"]["mean"] == pytest.approx(np.mean(means))


def test_labels_that_were_not_resampled_stand_for_the_source(scanned, scans, exact):
    assert np.prod(exact.cases[0].shape) < np.prod(SHAPE)  # cropped
    with_source, _ = run(scanned, f"--source={scans}")
    without, summary = run(scanned)
    assert without == with_source
    assert summary["grid"] == segmentation_scores.RESTORED


def test_resampled_labels_are_scored_as_they_are(scanned_resampled, resampled):
    rows, summary = run(scanned_resampled)
    assert summary["grid"] == segmentation_scores.PREPARED
    (case,) = resampled.split("test")
    label = np.asarray(store.load_label(resampled, case))
    volume = (label == 1).sum() * np.prod(case.spacing) / 1000
    assert float(rows[0]["reference_volume"]) == pytest.approx(volume)


def test_a_case_without_a_class_is_counted_and_left_out(volumes, segmented, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(volumes.path, dataset)
    forget_digests(dataset)
    empty, full = volumes.split("test")
    path = store.label_path(dataset, empty.id)
    np.save(path, np.zeros_like(np.load(path)))
    rows, summary = run(segmented, f"--data={dataset}")
    assert [row["dice"] == "nan" for row in rows] == [True, False]
    for part in (summary["scores"]["bright"], summary["mean_foreground"]):
        assert (part["cases"], part["absent"], part["dice"]["valid"]) == (2, 1, 1)
        assert part["dice"]["mean"] == float(rows[1]["dice"])
        assert part["dice"]["low"] is None  # one subject has no interval, and JSON no NaN

    path = store.label_path(dataset, full.id)
    np.save(path, np.zeros_like(np.load(path)))
    _, summary = run(segmented, f"--data={dataset}")
    assert summary["mean_foreground"]["dice"]["mean"] is None
    assert_pictures(segmented / "evaluation", "best.png", "median.png", "worst.png")


def test_regions_are_scored_where_the_classes_are_those_of_brats(segmented, volumes):
    trained = predictor.load(segmented)

    def regions(*classes):
        return segmentation_scores.regions_of(
            trained, dataclasses.replace(volumes, classes=classes)
        )

    for last in ("enhancing", "enhancing tumour"):
        assert regions("background", "necrosis", "oedema", last) == metrics.BRATS_REGIONS
    other = ("background", "oedema", "necrosis", "enhancing tumour")
    assert regions(*other) == {}
    trained.model.config.task.regions = [[1, 2, 3], [2, 3], [3]]
    assert regions(*other) == {
        "oedema + necrosis + enhancing tumour": (1, 2, 3),
        "necrosis + enhancing tumour": (2, 3),
    }


def test_sources_without_the_labels_of_the_run_are_refused(scanned, scans, exact, tmp_path):
    (case,) = exact.split("test")
    moved = tmp_path / "moved"
    shutil.copytree(scans, moved)
    (moved / case.extra["source"][-1]).unlink()
    with pytest.raises(UserError, match=f"missing, the label of {case.id}"):
        run(scanned, f"--source={moved}")
    nib.save(
        nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4)),
        moved / case.extra["source"][-1],
    )
    with pytest.raises(UserError, match="prepare the data again"):
        run(scanned, f"--source={moved}")


def test_voxels_that_nobody_annotated_count_for_nothing(monkeypatch):
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    prediction = truth.copy()
    prediction[5] = 1
    truth[5] = OUTSIDE
    scored = segmentation_scores._scored(prediction, truth, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(scored.prediction, scored.truth)
    assert not scored.known[5].any()
    monkeypatch.setattr(segmentation_scores, "predict_case", lambda *_: scored)
    monkeypatch.setattr(segmentation_scores, "regions_of", lambda *_: {})
    dataset = store.Dataset(Path(), "", 3, ("a",), ("background", "organ"), "", ())
    case = store.Case("c", "c", "test", (6, 6, 6), 1, (1, 1, 1), ())
    rows, confusion = segmentation_scores.score_cases(None, dataset, [case], "")
    assert rows[0]["dice"] == 1
    assert confusion.tolist() == [[5 * 36 - 27, 0], [0, 27]]
