"""Predictions of images of any size; label maps lie over their scans, bit by bit."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from ssl3d import xla
from ssl3d.data import geometry, store
from ssl3d.downstream import predictor
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.evaluating import SHAPE
from tests.support.predicting import run, use_thresholds

# Images mirrored.

WHOLE = {"segment3d": (24, 24, 24), "classify2d": (24, 24)}  # one window for each shared image


@pytest.mark.parametrize(("name", "flipped"), [("segment3d", (0, 2)), ("classify2d", (0, 1))])
def test_mirrored_predictions_are_means_over_the_flips(
    save_model, datasets, tmp_path, name, flipped
):
    dataset = datasets[int(name[-2])]
    save_model(
        tmp_path, dataset, name, data__crop=WHOLE[name], augment__flip=0.5,
        augment__flip_axes=flipped, predict__mirror=False,
    )  # fmt: skip
    plain, mirrored = predictor.load(tmp_path), predictor.load(tmp_path, mirror=True)
    image = np.asarray(store.load_image(dataset, dataset.cases[0]))

    def predict(trained, image):
        if name == "segment3d":
            return predictor.segment(trained, image)
        return next(predictor.classify(trained, [image]))

    answers = []
    for axes in itertools.chain.from_iterable(
        itertools.combinations(flipped, count) for count in range(len(flipped) + 1)
    ):
        answer = predict(plain, np.flip(image, axes))
        answers.append(np.flip(answer, axes) if name == "segment3d" else answer)
    np.testing.assert_allclose(predict(mirrored, image), np.mean(answers, 0), atol=1e-5)
    assert not np.allclose(answers[0], np.mean(answers, 0), atol=1e-5)


def test_who_trains_without_mirrored_images_predicts_without(save_model, volumes, tmp_path):
    """Setting augment.flip=0 is enough: such a network knows no mirror image."""
    size = WHOLE["segment3d"]
    save_model(
        tmp_path, volumes, data__crop=size, augment__flip=0.0, augment__flip_axes=(0,),
        predict__mirror=True,
    )  # fmt: skip
    trained = predictor.load(tmp_path)
    assert trained.model.config.predict.mirror is False  # as summary.json will say
    image = np.asarray(store.load_image(volumes, volumes.cases[0]))
    np.testing.assert_allclose(
        predictor.segment(trained, image), trained.forward(image[None])[0], atol=1e-5
    )
    with pytest.raises(UserError, match=r"--mirror: .* without mirrored images .*flip=0"):
        predictor.load(tmp_path, mirror=True)


def test_gpus_predict_with_channels_last_as_they_were_trained(
    save_model, pictures, tmp_path, compiler_options
):
    for last in (False, True):
        save_model(tmp_path / str(last), pictures, "classify2d", xla__channels_last=last)
        with xla.compiling_for("gpu"):
            predictor.load(tmp_path / str(last))
        assert ("xla_gpu_force_conv_nhwc" in compiler_options[-1]) == last


# Label maps over their scans.

# Tilted out of all planes, the axes along S, R, A and two of them reversed.
TILT = np.array([[0.02, -0.995, 0.1], [0.1, 0.1, 0.99], [-0.995, 0.01, 0.1]])


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_scans(folder):
    """Four volumes with geometries of their own, and labels 0, 2, 300 beside them."""
    tilted = np.eye(4)
    tilted[:3, :3] = np.linalg.qr(TILT)[0] * np.sign(np.diag(np.linalg.qr(TILT)[1])) * (1, 1.5, 2.1)
    tilted[:3, 3] = 31, -12, 7
    flipped = files.orientation_affine((1, 0, 2), (-1, 1, -1), (1.2, 0.9, 1.0))

    scaled = nib.Nifti1Image(files.scan(0), tilted)
    scaled.header.set_slope_inter(0.5, -40)
    scaled.header.set_xyzt_units("mm", "sec")
    scaled.header["descrip"] = b"TE=4.6"
    scaled.set_sform(tilted, "mni")
    scaled.set_qform(tilted, "scanner")

    only_qform = nib.Nifti1Image(files.scan(1).astype(np.float32), None)
    only_qform.set_qform(flipped, "aligned")
    only_qform.header["cal_max"] = 400

    second = nib.Nifti2Image(files.scan(2), flipped)
    big = nib.Nifti1Image(
        files.scan(3)[..., None], files.orientation_affine((2, 0, 1), (1, -1, 1)) * 0.001
    )
    big.affine[3, 3] = 1
    big = nib.Nifti1Image(big.dataobj, big.affine, nib.Nifti1Header(endianness=">"))
    big.header.set_xyzt_units("meter")

    images = {"scaled.nii.gz": scaled, "qform.nii": only_qform, "second.nii": second}
    for name, image in (images | {"sub/big.nii.gz": big}).items():
        write(folder / "images" / name, image)
        values = np.zeros(image.shape[:3], np.uint16)
        values[6:12, 6:12, 6:12] = 2
        values[8:10, 8:10, 8:10] = 300
        label = image.__class__(values, image.affine, image.header)
        label.set_data_dtype(np.uint16)
        label.header.set_slope_inter(1, 0)
        write(folder / "labels" / name, label)
    return folder


SCANS = ("qform", "scaled", "second", "sub-big")
RECIPES = {"as they are": ["--recipe=hippocampus"], "resampled": ["--recipe=mr", "--spacing=1.3"]}


@pytest.fixture(scope="module")
def niftis(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("niftis"))


@pytest.fixture(scope="module", params=RECIPES)
def trained(request, save_model, niftis, tmp_path_factory):
    """(workdir, data set): in one of the two nothing is resampled that has voxels of 1 mm."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = files.prepared(niftis, folder / "data", "folder", *RECIPES[request.param])
    return save_model(folder / "run", dataset), dataset


def source_of(folder, case):
    (found,) = (folder / "images").rglob(case.removeprefix("sub-") + ".nii*")
    return found


def header_fields(image):
    """What places the voxels: all of it is to be the same, bit by bit."""
    header = image.header
    names = ("sform_code", "qform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d")
    names += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "descrip")
    return {name: header[name].tolist() for name in names} | {
        "class": type(image),
        "zooms": header.get_zooms()[:3],
        "pixdim": header["pixdim"][:4].tolist(),
        "endianness": header.endianness,
        "affine": image.affine.tolist(),
    }


def test_label_maps_are_what_the_prepared_images_give_and_lie_over_the_inputs(
    trained, niftis, tmp_path, capsys
):
    workdir, dataset = trained
    found = run(workdir, niftis, tmp_path / "out", "--probabilities")
    names = [f"{case}.nii.gz" for case in SCANS]
    assert found == sorted([*names, *(f"probabilities/{name}" for name in names)])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / 'out'}: 4 label maps;")

    network = predictor.load(workdir)
    values = np.array([0, 2, 300])
    several = exact = outside = 0
    for case in dataset.cases:
        image = nib.load(tmp_path / "out" / f"{case.id}.nii.gz")
        original = nib.load(source_of(niftis, case.id))
        assert image.shape == original.shape[:3]
        assert image.get_data_dtype().newbyteorder("=") == np.uint16
        assert image.header["cal_max"] == 0
        assert header_fields(image) == header_fields(original)

        expected = predictor.segment(network, store.load_image(dataset, case))
        linear, _ = geometry.to_source(expected, case, "linear")
        labels = np.asarray(image.dataobj)
        several += len(np.unique(labels)) > 1
        # Summed in another order, ties up to rounding may be decided differently.
        two, one = np.moveaxis(np.sort(linear, axis=-1), -1, 0)[-2:]
        differ = labels != values[linear.argmax(-1)]
        assert not (differ & (one - two > 1e-5)).any()
        assert differ.mean() < 1e-3
        if np.allclose(geometry.spacing_of(np.asarray(case.extra["source_affine"])), case.spacing):
            exact += 1
            direct, _ = geometry.to_source(predictor.label_map(network, expected), case)
            np.testing.assert_array_equal(labels, values[direct])

        probabilities = nib.load(tmp_path / "out" / "probabilities" / f"{case.id}.nii.gz")
        assert probabilities.get_data_dtype().newbyteorder("=") == np.float32
        assert header_fields(probabilities) == header_fields(original)
        inside, _ = geometry.to_source(np.ones(case.shape, bool), case)
        array = np.asarray(probabilities.dataobj)
        np.testing.assert_allclose(array[inside], linear[inside], atol=1e-6)
        np.testing.assert_array_equal(array[~inside], np.eye(3)[[0] * (~inside).sum()])
        outside += (~inside).sum()
    assert several == len(SCANS)
    assert (exact > 0) == (dataset.extra["settings"]["recipe"]["spacing"] == [1, 1, 1])
    assert (outside > 0) == dataset.extra["settings"]["recipe"]["crop"]


def test_label_maps_follow_the_intensities_of_the_file(save_model, niftis, tmp_path, monkeypatch):
    """Independent of the code in geometry: the bright voxels of the file have the label 300."""
    dataset = files.prepared(
        niftis, tmp_path / "data", "folder", "--recipe=hippocampus", "--spacing=1"
    )
    workdir = save_model(tmp_path / "run", dataset)
    use_thresholds(monkeypatch, -10, 0)
    (case,) = [case for case in dataset.cases if case.id == "sub-big"]
    assert case.spacing == (1, 1, 1)
    run(workdir, source_of(niftis, case.id), tmp_path / "out")
    original = nib.load(source_of(niftis, case.id)).get_fdata()[..., 0]
    (shift,) = case.extra["intensity"]["shift"]
    labels = np.asarray(nib.load(tmp_path / "out/big.nii.gz").dataobj)
    np.testing.assert_array_equal(labels, np.where(original > shift, 300, 2))


def test_the_same_again_replaces_everything_with_the_same_bytes(trained, niftis, tmp_path):
    workdir, _ = trained
    place = niftis / "images" / "second.nii"
    output = tmp_path / "out"
    assert run(workdir, place, output) == ["second.nii.gz"]
    before = (output / "second.nii.gz").read_bytes()
    (output / "second.nii.gz").write_bytes(b"old")
    assert run(workdir, place, output) == ["second.nii.gz"]
    assert (output / "second.nii.gz").read_bytes() == before


def test_best_or_last(save_model, trained, niftis, tmp_path):
    workdir, dataset = trained
    with pytest.raises(UserError, match=r"model\.json: missing"):
        run(workdir, niftis, tmp_path / "out", "--model=last")
    assert not (tmp_path / "out").exists()
    save_model(tmp_path / "run", dataset, kind="last")
    place = niftis / "images" / "second.nii"
    assert run(tmp_path / "run", place, tmp_path / "out", "--model=last") == ["second.nii.gz"]


def test_slices_of_a_volume(save_model, niftis, tmp_path):
    dataset = files.prepared(niftis, tmp_path / "data", "folder", "--recipe=hippocampus")
    workdir = save_model(tmp_path / "run", dataset, "segment2d")
    run(workdir, niftis / "images", tmp_path / "out", "--layout=folder")
    network = predictor.load(workdir)
    (case,) = [case for case in dataset.cases if case.id == "second"]
    expected = predictor.segment(network, store.load_image(dataset, case))
    linear, _ = geometry.to_source(expected, case, "linear")
    labels = np.asarray(nib.load(tmp_path / "out/second.nii.gz").dataobj)
    assert (labels == np.array([0, 2, 300])[linear.argmax(-1)]).mean() > 0.999


def test_slabs_are_parts_of_the_whole(scanned, resampled, monkeypatch):
    trained, case = predictor.load(scanned), resampled.cases[0]
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), case.shape).astype(np.float32)
    whole = predictor.to_source_grid(trained, probabilities, case)
    monkeypatch.setattr(geometry, "SLAB", 2 * SHAPE[1] * SHAPE[2])
    np.testing.assert_array_equal(predictor.to_source_grid(trained, probabilities, case), whole)
