"""Predictions of files in every layout, and the errors for those that cannot be predicted."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from ssl3d.data import geometry, store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation import case as preparation
from ssl3d.downstream import predict_files, predictor
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.predicting import run, use_thresholds

# Collections.


def test_a_folder_of_the_decathlon_and_macos_leftovers(save_model, tmp_path, monkeypatch):
    source = files.write_msd(tmp_path / "Task04", unlabelled=3)
    dataset = files.prepared(source, tmp_path / "data", "msd")
    workdir = save_model(tmp_path / "run", dataset)
    use_thresholds(monkeypatch, -10, 0)
    (source / "imagesTs/._case_06.nii.gz").write_bytes(b"resource fork")
    expected = [f"case_{i:02d}.nii.gz" for i in (6, 7, 8)]
    assert run(workdir, source / "imagesTs", tmp_path / "test") == expected
    image = nib.load(tmp_path / "test/case_06.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert set(np.unique(image.dataobj)) == {1, 2}
    # The whole collection, whose labels are nobody's business here.
    (source / "labelsTr/case_00.nii.gz").write_bytes(b"damaged")
    assert len(run(workdir, source, tmp_path / "all")) == 9


@pytest.fixture(scope="module")
def brats(save_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brats")
    source = files.write_brats(folder / "source")
    dataset = files.prepared(source, folder / "data", "brats", "--size=24")
    regions = ((1, 2, 3), (1, 3), (3,))
    return save_model(folder / "run", dataset, task__regions=regions), dataset, source


def test_brats_in_the_official_names_and_values(brats, tmp_path, monkeypatch):
    workdir, dataset, source = brats
    real = predictor.load

    def load(*arguments):
        def forward(images):
            return np.stack([images[..., 0] > limit for limit in (-0.5, 0, 0.4)], -1).astype("f4")

        return real(*arguments)._replace(forward=forward)

    monkeypatch.setattr(predictor, "load", load)
    names = [f"{case}.nii.gz" for case in files.BRATS_SPELLINGS]
    assert run(workdir, source, tmp_path / "out", "--probabilities") == sorted(
        [*names, *(f"probabilities/{name}" for name in names)]
    )
    network = load(workdir)
    for case in dataset.cases:
        enhancing = 3 if case.id.startswith("BraTS-") else 4
        labels = np.asarray(nib.load(tmp_path / f"out/{case.id}.nii.gz").dataobj)
        assert labels.dtype == np.uint8
        probabilities = predictor.segment(network, store.load_image(dataset, case))
        linear, _ = geometry.to_source(probabilities, case, "linear")
        whole, core, inner = np.moveaxis(linear > 0.5, -1, 0)
        expected = np.select([inner, core, whole], [enhancing, 1, 2])
        assert set(np.unique(expected)) == {0, 1, 2, enhancing}
        assert (labels == expected).mean() > 0.999
        # Regions have no background: outside the crop there is none of them.
        array = np.asarray(nib.load(tmp_path / f"out/probabilities/{case.id}.nii.gz").dataobj)
        np.testing.assert_allclose(array, linear, atol=1e-6)
    # The folder of one case is an input too.
    assert run(workdir, source / "BraTS2021_00002", tmp_path / "one") == ["BraTS2021_00002.nii.gz"]


def test_brats_without_a_modality_and_in_other_layouts(brats, tmp_path, capsys):
    workdir, _, source = brats
    place = tmp_path / "in" / "BraTS2021_00002"
    place.mkdir(parents=True)
    for modality in ("flair", "t1", "t2"):
        name = f"BraTS2021_00002_{modality}.nii.gz"
        (place / name).write_bytes((source / "BraTS2021_00002" / name).read_bytes())
    with pytest.raises(UserError, match="BraTS2021_00002: missing modality T1ce"):
        run(workdir, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="nothing that could be predicted"):
        run(workdir, tmp_path / "in", tmp_path / "out", "--on-error=skip")
    assert "left out: " in capsys.readouterr().err

    numbered = tmp_path / "numbered"
    numbered.mkdir()
    for number, modality in enumerate(("t1ce", "flair", "t1", "t2")):
        data = (source / f"BraTS2021_00002/BraTS2021_00002_{modality}.nii.gz").read_bytes()
        (numbered / f"BraTS2021_00002_{number:04d}.nii.gz").write_bytes(data)
    assert run(workdir, numbered, tmp_path / "out") == ["BraTS2021_00002.nii.gz"]


@pytest.fixture(scope="module")
def nnunet(save_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nnunet")
    source = files.write_nnunet(folder / "source")
    return save_model(folder / "run", files.prepared(source, folder / "data", "nnunet")), source


def test_channels_in_files_of_their_own_or_in_one(nnunet, tmp_path, capsys):
    workdir, source = nnunet
    names = [f"c{i}.nii.gz" for i in range(3)]
    assert run(workdir, source / "imagesTr", tmp_path / "a") == names
    assert run(workdir, source, tmp_path / "b") == names  # as dataset.json describes it
    assert run(workdir, source / "imagesTr", tmp_path / "c", "--layout=nnunet") == names
    first = [nib.load(source / f"imagesTr/c0_000{i}.nii.gz").dataobj for i in range(2)]
    files.write_nifti(tmp_path / "4d/c0.nii.gz", np.stack(first, -1))
    assert run(workdir, tmp_path / "4d", tmp_path / "d") == ["c0.nii.gz"]
    maps = [(tmp_path / name / "c0.nii.gz").read_bytes() for name in "abc"]
    maps += [nib.load(tmp_path / "d/c0.nii.gz").get_fdata().tobytes()]
    assert maps[0] == maps[1] == maps[2]
    assert nib.load(tmp_path / "a/c0.nii.gz").get_fdata().tobytes() == maps[3]


def test_a_missing_a_superfluous_and_an_unnumbered_channel(nnunet, tmp_path, capsys):
    workdir, _ = nnunet
    place = tmp_path / "in"
    for name in ("a_0000", "b_0000", "b_0001", "b_0002", "c_0000", "c_0001", "notes"):
        files.write_nifti(place / f"{name}.nii.gz", files.scan(1))
    with pytest.raises(UserError, match=r"notes\.nii\.gz: the name does not end"):
        run(workdir, place, tmp_path / "out")
    assert run(workdir, place, tmp_path / "out", "--on-error=skip") == ["c.nii.gz"]
    captured = capsys.readouterr()
    assert "/a: channel 0001 (T2) is missing" in captured.err
    assert "b_0002.nii.gz: the network takes only 2 channels" in captured.err
    assert captured.err.count("left out: ") == 3
    assert captured.out.startswith(f"{tmp_path / 'out'}: 1 label map, 3 left out; ")


def test_dicom_and_nrrd_become_nifti_where_they_lie(save_model, tmp_path, monkeypatch):
    dataset = files.prepared(files.write_msd(tmp_path / "Task04"), tmp_path / "data", "msd")
    workdir = save_model(tmp_path / "run", dataset)
    use_thresholds(monkeypatch, -10, 0)
    array = files.scan(5)
    affine = files.orientation_affine((1, 0, 2), (-1, 1, -1))
    files.write_series(tmp_path / "dicom/patient", array, affine, patient="P7")
    image = sitk.GetImageFromArray(array.T)
    image.SetDirection((np.diag([-1, -1, 1]) @ affine[:3, :3]).ravel())
    image.SetOrigin(np.diag([-1, -1, 1]) @ affine[:3, 3])
    (tmp_path / "itk").mkdir()
    sitk.WriteImage(image, str(tmp_path / "itk/scan.nrrd"))

    assert run(workdir, tmp_path / "dicom", tmp_path / "a") == ["patient.nii.gz"]
    assert run(workdir, tmp_path / "dicom/patient", tmp_path / "b") == ["P7.nii.gz"]
    assert run(workdir, tmp_path / "itk", tmp_path / "c") == ["scan.nii.gz"]
    for path in ("a/patient", "b/P7", "c/scan"):
        found = nib.load(tmp_path / f"{path}.nii.gz")
        points = np.indices(found.shape).reshape(3, -1).T
        where = nib.affines.apply_affine(np.linalg.inv(affine) @ found.affine, points)
        at = tuple(np.rint(where).astype(int).T)
        np.testing.assert_allclose(where, np.rint(where), atol=1e-4)
        labels = np.asarray(found.dataobj).reshape(-1)
        np.testing.assert_array_equal(labels, np.where(array[at] > 100, 2, 1))
        assert found.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(found.header.get_qform(), found.affine, atol=1e-5)


# Pictures.


def test_grades_of_pictures_in_a_table(save_model, tmp_path, capsys):
    source = files.write_images(tmp_path / "source")
    dataset = files.prepared(source, tmp_path / "data", "images", "--size=32")
    workdir = save_model(tmp_path / "run", dataset, "classify2d")
    place = source / "train_images"
    assert run(workdir, place, tmp_path / "out") == ["predictions.csv"]
    assert f"{tmp_path / 'out'}: 6 rows in predictions.csv; " in capsys.readouterr().out
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [case.id for case in dataset.cases]
    assert [row["file"] for row in rows] == [f"{case.id}.png" for case in dataset.cases]
    network = predictor.load(workdir)
    images = [store.load_image(dataset, case) for case in dataset.cases]
    expected = np.stack(list(predictor.classify(network, images)))
    columns = [f"probability {name}" for name in dataset.classes]
    assert list(rows[0]) == ["id", "file", "grade", "class", *columns]
    found = np.array([[float(row[column]) for column in columns] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [int(row["grade"]) for row in rows] == expected.argmax(1).tolist()
    assert [row["class"] for row in rows] == [dataset.classes[k] for k in expected.argmax(1)]

    with pytest.raises(UserError, match="--probabilities: is for segmentation"):
        run(workdir, place, tmp_path / "more", "--probabilities")
    (place / "eye1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"eye1.png: .* \(--on-error=skip leaves it out\)"):
        run(workdir, place, tmp_path / "more")
    assert list((tmp_path / "more").iterdir()) == []
    run(workdir, place, tmp_path / "more", "--on-error=skip", "--layout=images")
    lines = (tmp_path / "more/predictions.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["eye0", "eye2", "eye3", "eye4", "eye5"]


def test_label_maps_of_pictures_are_pictures(save_model, tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / "source/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source/labels").mkdir(parents=True, exist_ok=True)
        Image.fromarray(files.fundus(i, 40)).save(tmp_path / f"source/images/p{i}.png")
        label = 7 * (files.fundus(i, 40)[..., 0] > 20).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / f"source/labels/p{i}.png")
    dataset = files.prepared(tmp_path / "source", tmp_path / "data", "folder", "--size=20")
    workdir = save_model(tmp_path / "run", dataset, "segment2d")
    use_thresholds(monkeypatch, 0)
    found = run(workdir, tmp_path / "source", tmp_path / "out", "--probabilities")
    assert found == [
        *(f"p{i}.png" for i in range(3)),
        *(f"probabilities/p{i}.tif" for i in range(3)),
    ]
    labels = np.asarray(Image.open(tmp_path / "out/p0.png"))
    with Image.open(tmp_path / "out/probabilities/p0.tif") as pages:
        assert pages.n_frames == 2
        pages.seek(1)
        np.testing.assert_array_equal(labels, 7 * (np.asarray(pages) > 0.5))
    truth = np.asarray(Image.open(tmp_path / "source/labels/p0.png"))
    assert (labels == truth).mean() > 0.9


# What can be wrong.


@pytest.fixture(scope="module")
def one_modality(save_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    dataset = files.prepared(files.write_msd(folder / "source"), folder / "data", "msd")
    return save_model(folder / "run", dataset)


def test_a_damaged_file_stops_or_is_left_out(one_modality, tmp_path, capsys):
    place = tmp_path / "in"
    for i in range(3):
        files.write_nifti(place / f"scan{i}.nii.gz", files.scan(i))
    (place / "scan1.nii.gz").write_bytes((place / "scan1.nii.gz").read_bytes()[:-900])
    with pytest.raises(UserError, match=r"scan1.nii.gz: .*gzip"):
        run(one_modality, place, tmp_path / "out")
    # What came before is whole, and nothing else is there.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan0.nii.gz"]
    nib.load(tmp_path / "out/scan0.nii.gz").get_fdata()
    found = run(one_modality, place, tmp_path / "out", "--on-error=skip")
    assert found == ["scan0.nii.gz", "scan2.nii.gz"]
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert "scan1.nii.gz: " in line
    assert captured.out.splitlines()[-1].startswith(
        f"{tmp_path / 'out'}: 2 label maps, 1 left out; "
    )


def test_what_cannot_be_predicted_is_one_line(save_model, one_modality, nnunet, tmp_path, volumes):
    place = tmp_path / "in"
    scan = files.write_nifti(place / "scan.nii.gz", files.scan(0))
    output = tmp_path / "out"

    def refused(workdir, place, output, what, *options):
        with pytest.raises(UserError, match=what) as error:
            run(workdir, place, output, *options)
        assert "\n" not in str(error.value)

    refused(one_modality, tmp_path / "nowhere", output, "nowhere: no such file or folder")
    refused(one_modality, place, place / "out", "out lies inside the input; choose another")
    refused(one_modality, place, place, "in lies inside the input; choose another")
    refused(one_modality, scan, place, "in lies inside the input; choose another")
    refused(one_modality, place, output, "dataset.json: missing", "--layout=msd")
    (tmp_path / "empty").mkdir()
    refused(one_modality, tmp_path / "empty", output, "empty: no cases found")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("no scan")
    refused(one_modality, tmp_path / "text", output, "text: no cases found")
    refused(one_modality, tmp_path / "text/notes.txt", output, "notes.txt: not a DICOM file")
    assert not any(output.glob("*"))

    workdir, _ = nnunet
    refused(workdir, place, output, r"scan.nii.gz: 1 channels, the data set has 2 \(T1, T2\)")
    files.write_nifti(tmp_path / "4d/scan.nii.gz", np.stack([files.scan(i) for i in range(3)], -1))
    refused(one_modality, tmp_path / "4d", output, "scan.nii.gz: 3 channels, the data set has 1")
    (tmp_path / "pictures").mkdir()
    Image.fromarray(files.fundus(0)).save(tmp_path / "pictures/eye.png")
    refused(one_modality, tmp_path / "pictures", output, "eye.png: a 2D picture", "--layout=folder")

    refused(tmp_path / "none", place, output, "model.json: missing")
    phantom = save_model(tmp_path / "phantom", volumes)
    refused(phantom, place, output, "settings of the preparation are missing")
    (tmp_path / "file").write_text("mine")
    refused(one_modality, place, tmp_path / "file", "file: File exists; fix this")
    assert (tmp_path / "file").read_text() == "mine"


def test_one_case_is_prepared_ahead_and_no_more(monkeypatch):
    asked = []

    def prepare_arrays(case, job):
        asked.append(case.id)
        return preparation.Prepared(case, np.zeros((2, 2, 1), np.float32), None)

    monkeypatch.setattr(preparation, "prepare_arrays", prepare_arrays)
    cases = [SourceCase(name, name, ((Path(name),),)) for name in "abcd"]
    for number, (case, _, image) in enumerate(predict_files.prepared_images(cases, None, False)):
        assert case is cases[number]
        assert image.dtype == np.float16
        assert len(asked) <= number + 2
    assert asked == list("abcd")
