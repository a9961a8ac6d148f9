import csv
import dataclasses
import json
import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from scipy import ndimage

from ssl3d import evaluate, metrics, prepare
from ssl3d.data import store
from ssl3d.downstream import predictor, segmentation_scores
from ssl3d.errors import UserError
from ssl3d.figures import case_pictures
from ssl3d.training import loop, trained_model

# Voxel axes along S, R, A, two of them reversed, and of three lengths.
AFFINE = np.array(
    [
        [0, -1.0, 0, 12],
        [0, 0, 1.5, -7],
        [-2.0, 0, 0, 31],
        [0, 0, 0, 1],
    ]
)
SHAPE = (19, 30, 24)
VALUES = {0: 0, 2: 1, 5: 2}  # label value in the files -> class


def run(workdir, *options):
    """Rows of the table and the summary."""
    evaluate.main([f"--workdir={workdir}", *options])
    return read(workdir / "evaluation")


def read(folder):
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "summary.json").read_text())


def dice(prediction, truth, index):
    sizes = (prediction == index).sum() + (truth == index).sum()
    return 2 * ((prediction == index) & (truth == index)).sum() / sizes


def assert_pictures(folder, *names):
    assert {path.name for path in folder.glob("*.png")} == set(names)
    for name in names:
        assert matplotlib.image.imread(folder / name)[..., :3].std() > 0.05


# Of the two runs: small windows, and as many batches of them as may be.
SHORT = {"batch_size": 2, "steps": 2, "validate_every": 1, "checkpoint_every": 2}
SHORT |= {"predict__batch": 3}


@pytest.fixture(scope="module")
def segmented(tiny, volumes, tmp_path_factory):
    """A run of segmentation in 3D."""
    workdir = tmp_path_factory.mktemp("segmented")
    loop.train(tiny("segment3d", volumes.path, data__crop=(16, 16, 16), **SHORT), workdir)
    return workdir


@pytest.fixture(scope="module")
def classified(tiny, pictures, tmp_path_factory):
    """A run of classification of pictures."""
    workdir = tmp_path_factory.mktemp("classified")
    loop.train(tiny("classify2d", pictures.path, data__crop=(16, 16), **SHORT), workdir)
    return workdir


def assert_scores(workdir, dataset, rows, summary, kind="best"):
    """The rows are what one gets from the predictions by hand, the summary what from the rows."""
    trained = predictor.load(workdir, kind)
    cases = dataset.split("test")
    assert [row["id"] for row in rows] == [case.id for case in cases]
    confusion = np.zeros((2, 2), int)
    for row, case in zip(rows, cases, strict=True):
        answer = predictor.segment(trained, store.load_image(dataset, case)).argmax(-1)
        truth = np.asarray(store.load_label(dataset, case))
        assert float(row["dice"]) == pytest.approx(dice(answer, truth, 1), abs=1e-12)
        assert float(row["truth_volume"]) == pytest.approx((truth == 1).sum() / 1000)
        assert float(row["predicted_volume"]) == pytest.approx((answer == 1).sum() / 1000)
        assert row["class"] == "bright"
        assert row["subject"] == case.subject
        np.add.at(confusion, (truth, answer), 1)
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


@pytest.mark.parametrize("workdir", ["segmented", "classified"])
def test_the_same_tables_without_pictures(workdir, request, tmp_path):
    options = [f"--workdir={request.getfixturevalue(workdir)}", f"--output={tmp_path}"]
    evaluate.main(options)
    with_pictures = read(tmp_path)
    assert list(tmp_path.glob("*.png"))
    evaluate.main([*options, "--no-pictures"])
    assert {path.name for path in tmp_path.iterdir()} == {"cases.csv", "summary.json"}
    assert read(tmp_path) == with_pictures


def test_a_model_of_slices_is_scored_on_whole_volumes(save_model, volumes, tmp_path):
    save_model(tmp_path, volumes, "segment2d")
    rows, summary = run(tmp_path)
    assert_scores(tmp_path, volumes, rows, summary)
    assert_pictures(tmp_path / "evaluation", "best.png", "median.png", "worst.png")


def test_scores_of_a_classification_by_hand(classified, pictures, capsys):
    rows, summary = run(classified, "--split=train")
    first, last = capsys.readouterr().out.splitlines()
    assert "best model" in first
    assert f"accuracy {summary['scores']['accuracy']['value']:.3f}" in last
    cases = pictures.split("train")
    trained = predictor.load(classified)
    images = [np.asarray(store.load_image(pictures, case))[4:20, 4:20] for case in cases]
    probabilities = np.asarray(trained.forward(np.stack(images).astype(np.float32)))
    for row, case, probability in zip(rows, cases, probabilities, strict=True):
        written = [float(row[f"probability {name}"]) for name in pictures.classes]
        np.testing.assert_allclose(written, probability, atol=1e-6)
        assert (row["id"], row["subject"], int(row["grade"])) == (case.id, case.subject, case.grade)
        assert int(row["predicted"]) == probability.argmax()
    hits = [row["grade"] == row["predicted"] for row in rows]
    accuracy = summary["scores"]["accuracy"]
    assert accuracy["value"] == pytest.approx(np.mean(hits))
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    confusion = np.array(summary["confusion"])
    assert np.trace(confusion) == sum(hits)
    assert confusion.sum(1).tolist() == np.bincount([case.grade for case in cases]).tolist()
    assert set(summary["scores"]) == {"accuracy", "kappa", "auroc"}
    assert "reference_qw_kappa_kaggle" in summary["reference"]
    assert (summary["cases"], summary["subjects"]) == (8, 7)
    assert_pictures(classified / "evaluation", "confusion.png", "mistakes.png")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A collection of rotated, anisotropic scans; the labels lie along other axes than these."""
    folder = tmp_path_factory.mktemp("scans")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(5):
        rng = np.random.default_rng(index)
        grid = np.stack(np.indices(SHAPE), -1) * (2.0, 1.0, 1.5)
        centre = np.array([19, 15, 18]) + rng.uniform(-2, 2, 3)
        distance = np.linalg.norm(grid - centre, axis=-1)
        image = (distance < 12) * (rng.integers(1, 200, SHAPE) + 10 * grid[..., 1])
        label = 2 * (np.linalg.norm(grid - centre - (3, 1, 0), axis=-1) < 5)
        label[np.linalg.norm(grid - centre + (3, 0, 3), axis=-1) < 4] = 5
        image = nib.Nifti1Image(image.astype(np.int16), AFFINE)
        label = nib.Nifti1Image(label.astype(np.uint8), AFFINE).as_reoriented(
            orientations.ornt_transform(
                orientations.io_orientation(AFFINE), orientations.axcodes2ornt("PIL")
            )
        )
        nib.save(image, folder / f"images/scan{index}.nii.gz")
        nib.save(label, folder / f"labels/scan{index}.nii.gz")
    return folder


def prepared(scans, output, *options):
    prepare.main(
        [
            "--layout=folder",
            f"--source={scans}",
            f"--output={output}",
            "--recipe=brats",  # which crops to what is not 0
            "--classes=0:nothing,2:liver,5:tumour",
            "--workers=1",
            *options,
        ]
    )
    return store.read(output)


@pytest.fixture(scope="module")
def exact(scans, tmp_path_factory):
    """Turned and cropped, not resampled."""
    return prepared(scans, tmp_path_factory.mktemp("exact"), "--spacing=1,1.5,2")


@pytest.fixture(scope="module")
def resampled(scans, tmp_path_factory):
    """To voxels that are larger along every axis, and cropped."""
    return prepared(scans, tmp_path_factory.mktemp("resampled"), "--spacing=1.4,1.9,2.3")


@pytest.fixture(scope="module")
def scanned(save_model, exact, tmp_path_factory):
    """A model for the scans."""
    return save_model(tmp_path_factory.mktemp("scanned"), exact, data__crop=(8, 8, 8))


@pytest.fixture(scope="module")
def scanned_resampled(save_model, resampled, tmp_path_factory):
    """A model for the resampled scans."""
    return save_model(tmp_path_factory.mktemp("scanned_resampled"), resampled, data__crop=(8, 8, 8))


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
    answer = np.where(inside, np.argmax(maps, 0), 0)
    label = nib.load(scans / case.extra["source"][-1])
    indices = np.concatenate([np.indices(SHAPE), np.ones((1, *SHAPE))])
    places = np.tensordot(np.linalg.inv(label.affine) @ AFFINE, indices, 1)[:3]
    values = np.asarray(label.dataobj)[tuple(np.rint(places).astype(int))]
    return answer, np.vectorize(VALUES.get)(values)


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
    answer, truth = by_hand(scanned, dataset, scans, case)
    assert (np.bincount(truth.ravel(), minlength=3) > 50).all()
    scored = segmentation_scores.predict_case(
        predictor.load(scanned), dataset, case, segmentation_scores.SOURCE, scans
    )
    assert scored.spacing == pytest.approx((2, 1, 1.5))
    np.testing.assert_array_equal(scored.truth, truth)
    assert (scored.prediction != answer).mean() < 1e-3  # ties of interpolated probabilities
    for index, row in enumerate(rows, start=1):
        assert float(row["dice"]) == pytest.approx(dice(answer, truth, index), abs=5e-3)
        assert float(row["truth_volume"]) == pytest.approx((truth == index).sum() * 3 / 1000)
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
    assert float(rows[0]["truth_volume"]) == pytest.approx(volume)


def test_data_prepared_in_another_way_are_refused(scanned, resampled):
    with pytest.raises(UserError, match="prepared in another way"):
        run(scanned, f"--data={resampled.path}")


def test_cases_that_were_trained_on_are_no_test(segmented, volumes, tmp_path):
    shutil.copytree(segmented, tmp_path / "run")
    file = tmp_path / "run" / "model" / "best" / trained_model.DESCRIPTION
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"trained_on": [volumes.split("test")[0].id]}))
    with pytest.raises(UserError, match="was trained on"):
        run(tmp_path / "run")


def test_slabs_are_parts_of_the_whole(scanned, resampled, monkeypatch):
    trained, case = predictor.load(scanned), resampled.cases[0]
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), case.shape).astype(np.float32)
    whole = predictor.to_source_grid(trained, probabilities, case)
    monkeypatch.setattr(predictor, "_SLAB", 2 * SHAPE[1] * SHAPE[2])
    np.testing.assert_array_equal(predictor.to_source_grid(trained, probabilities, case), whole)


def test_a_case_without_a_class_is_counted_and_left_out(volumes, segmented, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(volumes.path, dataset)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=unlabelled"], "no labelled case in the split unlabelled; there are some in "),
        (["--split=tset"], "invalid choice: 'tset'"),
        (["--source=nowhere"], "was not prepared from files"),
        (["--data=nowhere"], "nowhere: no prepared data set here"),
        (["--output=/dev/null/x"], "/dev/null/x: "),
    ],
)
def test_what_cannot_be_evaluated_is_said(segmented, options, message):
    with pytest.raises(UserError, match=message):
        run(segmented, *options)


def test_models_and_data_that_do_not_fit_are_refused(
    segmented, classified, scanned, scans, exact, volumes, tmp_path
):
    with pytest.raises(UserError, match=r"model.json: missing"):
        run(tmp_path)
    with pytest.raises(UserError, match=r"its modalities are .*, the model's modality 0, modality"):
        run(segmented, f"--data={exact.path}")
    renamed = tmp_path / "renamed"
    shutil.copytree(volumes.path, renamed)
    file = renamed / store.MANIFEST
    file.write_text(file.read_text().replace('"bright"', '"dark"'))
    with pytest.raises(UserError, match="its classes are background, dark, the model's backgr"):
        run(segmented, f"--data={renamed}")
    with pytest.raises(UserError, match="a classification has none"):
        run(classified, f"--source={scans}")
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


def test_an_error_of_the_command_is_one_line(call_command, tmp_path):
    status, _, said = call_command(evaluate.main, f"--workdir={tmp_path}")
    assert status == 2
    assert said.count("\n") == 1


def test_outlines_of_pictures_and_of_classes_at_the_edge(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.zeros((20, 30), np.uint8)
    truth[:6, :6], truth[10:15, 10:20] = 1, 2
    figure = case_pictures.outlines(rng.random((20, 30, 3)), truth, truth * 0, (1.0, 1.0), "case")
    (axes,) = figure.axes
    assert axes.get_xlim() == (-0.5, 29.5)
    assert len(axes.collections) == 2  # the truth's classes; of the prediction there is none
    for contours, corners in zip(axes.collections, ([0, 0, 5, 5], [10, 10, 19, 14]), strict=True):
        (path,) = contours.get_paths()
        low, high = path.vertices.min(0), path.vertices.max(0)
        np.testing.assert_allclose([*low, *high], np.add(corners, [-0.5, -0.5, 0.5, 0.5]))


def test_worst_mistakes_are_the_farthest_then_the_surest():
    def row(name, grade, predicted, probability):
        return {"id": name, "grade": grade, "predicted": predicted, "probability": probability}

    rows = [
        row("right", 0, 0, [0.8, 0.1, 0.1]),
        row("near", 0, 1, [0.0, 1.0, 0.0]),
        row("far", 0, 2, [0.4, 0.0, 0.6]),
        row("far and sure", 2, 0, [0.9, 0.0, 0.1]),
    ]
    worst = case_pictures.worst_mistakes(rows)
    assert [row["id"] for row in worst] == ["far and sure", "far", "near"]
