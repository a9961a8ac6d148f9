import json
import shutil

import pytest

from ssl3d import evaluate
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.training import trained_model
from tests.support.evaluating import read, run


@pytest.mark.parametrize(
    "workdir", [pytest.param("segmented", marks=pytest.mark.slow), "classified"]
)
def test_the_same_tables_without_pictures(workdir, request, tmp_path):
    options = [f"--workdir={request.getfixturevalue(workdir)}", f"--output={tmp_path}"]
    evaluate.main(options)
    with_pictures = read(tmp_path)
    assert list(tmp_path.glob("*.png"))
    evaluate.main([*options, "--no-pictures"])
    assert {path.name for path in tmp_path.iterdir()} == {"cases.csv", "summary.json"}
    assert read(tmp_path) == with_pictures


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=unlabelled"], "invalid choice: 'unlabelled'"),
        (["--split=tset"], "invalid choice: 'tset'"),
        (["--source=nowhere"], "was not prepared from files"),
        (["--data=nowhere"], "nowhere: no prepared data set here"),
        (["--output=/dev/null/x"], "/dev/null/x: "),
    ],
)
def test_what_cannot_be_evaluated_is_said(segmented, options, message):
    with pytest.raises(UserError, match=message):
        run(segmented, *options)


def test_a_split_without_labels_is_said(segmented, volumes, tmp_path):
    shutil.copytree(volumes.path, tmp_path / "data")
    file = tmp_path / "data" / store.MANIFEST
    file.write_text(file.read_text().replace('"test"', '"unlabelled"'))
    with pytest.raises(UserError, match="no labelled case in the split test; there are some in "):
        run(segmented, f"--data={tmp_path / 'data'}")


def test_models_and_data_that_do_not_fit_are_refused(segmented, exact, volumes, tmp_path):
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
