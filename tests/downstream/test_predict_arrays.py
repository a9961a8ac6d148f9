"""Predictions of arrays, and of several networks at once."""

import nibabel as nib
import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.downstream import predictor
from ssl3d.errors import UserError
from ssl3d.predict import predict
from tests.support import source_files as files
from tests.support.predicting import run


@pytest.fixture(scope="module")
def runs(save_model, tmp_path_factory):
    """Two networks for the same data, one for data of another spacing, and the source."""
    folder = tmp_path_factory.mktemp("runs")
    source = files.write_msd(folder / "source")
    dataset = files.prepared(source, folder / "data", "msd")
    coarse = files.prepared(source, folder / "coarse", "msd", "--spacing=1.5")
    save_model(folder / "a", dataset)
    save_model(folder / "b", dataset, encoder__width=6)
    save_model(folder / "coarse_run", coarse)
    return folder


def test_an_array_is_predicted_as_its_file(runs, tmp_path):
    place = runs / "source/imagesTs"
    name = run(runs / "a", place, tmp_path / "out", "--probabilities")[0]
    image = nib.load(place / name)
    found = predict(np.asarray(image.dataobj), (), runs / "a", affine=image.affine)
    written = np.asarray(nib.load(tmp_path / "out" / name).dataobj)
    values = predictor.load(runs / "a").model.dataset.extra["settings"]["values"]
    table = np.array([value for value, _ in sorted(values, key=lambda pair: pair[1])])
    np.testing.assert_array_equal(table[found.labels], written)
    maps = np.asarray(nib.load(tmp_path / "out/probabilities" / name).dataobj)
    np.testing.assert_allclose(found.probabilities, maps, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-3)
    assert len(found.classes) == found.probabilities.shape[-1]
    # Without an affine the axes are R, A and S.
    canonical = nib.as_closest_canonical(image)
    plain = predict(canonical.get_fdata(), nib.affines.voxel_sizes(canonical.affine), runs / "a")
    assert plain.labels.shape == canonical.shape


def test_a_picture(save_model, pictures, tmp_path):
    source = files.write_images(tmp_path / "source")
    dataset = files.prepared(source, tmp_path / "data", "images", "--size=32")
    workdir = save_model(tmp_path / "run", dataset, "classify2d")
    found = predict(files.fundus(0), (), workdir)
    assert found.probabilities.shape == (len(dataset.classes),)
    assert found.probabilities.argmax() == found.labels
    assert found.classes == dataset.classes


@pytest.mark.parametrize(
    ("array", "spacing", "message"),
    [
        (np.zeros((9, 9)), (1, 1, 1), "array: its shape is .*give 3 axes of space"),
        (np.zeros((9, 9, 9)), (1, 1, 1), "array: constant image"),
        (np.arange(729.0).reshape(9, 9, 9), (1, 1), "spacing=.*3 positive numbers"),
        (np.arange(729.0).reshape(9, 9, 9), (1, 1, 0), "spacing=.*3 positive numbers"),
        (np.full((9, 9, 9), "a"), (1, 1, 1), "are not numbers"),
        (np.ones((9, 9, 9, 2)) * np.arange(2), (1, 1, 1), "array: 2 channels|constant"),
    ],
)
def test_arrays_that_are_no_image(runs, array, spacing, message):
    with pytest.raises(UserError, match=message):
        predict(array, spacing, runs / "a")


def test_an_ensemble_is_the_mean_of_its_networks(runs, tmp_path):
    dataset = store.read(runs / "data")
    image = store.load_image(dataset, dataset.cases[0])
    alone = [predictor.segment(predictor.load(runs / name), image) for name in "ab"]
    together = predictor.load_ensemble([runs / "a", runs / "b"])
    np.testing.assert_allclose(predictor.segment(together, image), np.mean(alone, 0), atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    place = runs / "source/imagesTs"
    found = run(runs / "a", place, tmp_path / "out", f"--workdir={runs / 'b'}", "--probabilities")
    both = predict(
        *(np.asarray(nib.load(place / found[0]).dataobj), ()),
        [runs / "a", runs / "b"],
        affine=nib.load(place / found[0]).affine,
    )
    maps = np.asarray(nib.load(tmp_path / "out/probabilities" / found[0]).dataobj)
    np.testing.assert_allclose(both.probabilities, maps, atol=1e-6)


def test_networks_of_other_spacings_or_classes_are_no_ensemble(runs, save_model, volumes, tmp_path):
    with pytest.raises(
        UserError, match=r"coarse_run: its images were prepared with spacing \[1\.5"
    ):
        predictor.load_ensemble([runs / "a", runs / "coarse_run"])
    other = save_model(tmp_path / "other", volumes)
    with pytest.raises(UserError, match=r"other: its classes are background, bright, not ") as e:
        predictor.load_ensemble([runs / "a", other])
    assert "\n" not in str(e.value)


def test_grades_of_an_ensemble(save_model, pictures, tmp_path):
    one = save_model(tmp_path / "one", pictures, "classify2d")
    two = save_model(tmp_path / "two", pictures, "classify2d", encoder__width=6)
    images = [store.load_image(pictures, case) for case in pictures.cases[:5]]
    alone = [list(predictor.classify(predictor.load(run_), images)) for run_ in (one, two)]
    together = list(predictor.classify(predictor.load_ensemble([one, two]), images))
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)
