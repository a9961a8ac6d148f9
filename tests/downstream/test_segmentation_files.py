"""What a segmentation writes beside its label maps, and label maps as DICOM."""

import csv
import importlib.util
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ssl3d import predict
from ssl3d.data import dicom_seg, store
from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.readers import dicom
from ssl3d.errors import UserError
from tests.support import source_files as files
from tests.support.predicting import run, use_thresholds


@pytest.fixture(scope="module")
def one(save_model, tmp_path_factory):
    """A network for one channel and the classes nothing, body and core; its source."""
    folder = tmp_path_factory.mktemp("one")
    source = files.write_msd(folder / "source")
    return save_model(folder / "run", files.prepared(source, folder / "data", "msd")), source


def test_classes_volumes_and_previews(one, tmp_path, monkeypatch):
    workdir, source = one
    use_thresholds(monkeypatch, -10, 0)
    output = tmp_path / "out"
    arguments = [f"--workdir={workdir}", f"--input={source / 'imagesTs'}", f"--output={output}"]
    predict.main(arguments)
    about = json.loads((output / "dataset.json").read_text())
    named = json.loads((source / "dataset.json").read_text())["labels"]
    assert about["labels"] == {name: int(value) for value, name in named.items()}
    assert about["file_ending"] == ".nii.gz"
    with (output / "volumes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    maps = sorted(output.glob("*.nii.gz"))
    assert [row["id"] + ".nii.gz" for row in rows] == [path.name for path in maps]
    for row, path in zip(rows, maps, strict=True):
        image = nib.load(path)
        voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        for name, value in about["labels"].items():
            if value:
                count = int((np.asarray(image.dataobj) == value).sum())
                assert float(row[f"{name} (ml)"]) == pytest.approx(count * voxel, abs=1e-4)
        with Image.open(output / f"previews/{row['id']}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10


def test_pictures_have_no_millilitres(save_model, tmp_path):
    for kind, low in (("images", 0), ("labels", 7)):
        folder = tmp_path / "source" / kind
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = files.fundus(i, 40)
            label = low * (pixels[..., 0] > 20).astype(np.uint8)
            Image.fromarray(label if low else pixels).save(folder / f"p{i}.png")
    dataset = files.prepared(tmp_path / "source", tmp_path / "data", "folder", "--size=20")
    workdir = save_model(tmp_path / "run", dataset, "segment2d")
    output = tmp_path / "out"
    place = tmp_path / "source/images/p0.png"
    predict.main([f"--workdir={workdir}", f"--input={place}", f"--output={output}"])
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    assert names == ["dataset.json", "p0.png", "previews/p0.png"]
    assert json.loads((output / "dataset.json").read_text())["file_ending"] == ".png"
    with pytest.raises(UserError, match="--format=dicom-seg: is for the segmentation of volumes"):
        run(workdir, place, tmp_path / "more", "--format=dicom-seg")


# DICOM.

needs_highdicom = pytest.mark.skipif(
    importlib.util.find_spec("highdicom") is None, reason="highdicom is an extra"
)


def planes_of(path, classes):
    """Position of each frame of a segmentation -> {segment number: pixels [rows, columns]}."""
    import highdicom as hd

    found = hd.seg.segread(path)
    assert [found.get_segment_description(n + 1).segment_label for n in range(len(classes))] == [
        *classes
    ]
    planes, shared = {}, found.SharedFunctionalGroupsSequence[0]
    for frame, groups in zip(
        found.pixel_array.reshape(-1, found.Rows, found.Columns),
        found.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        place = tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        own = groups if "SegmentIdentificationSequence" in groups else shared
        number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        planes.setdefault(place, {})[int(number)] = frame
    return found, planes, shared


@needs_highdicom
@pytest.mark.parametrize("multiframe", [False, True])
def test_a_segmentation_lies_on_the_planes_of_its_series(tmp_path, multiframe):
    affine = np.diag([-0.8, -1.2, 2.5, 1.0])
    affine[:3, 3] = (30, 40, -50)
    image = files.scan(0, (14, 18, 9))
    if multiframe:
        files.write_multiframe(tmp_path / "s/one.dcm", image, affine)
    else:
        files.write_series(tmp_path / "s", image, affine)
    paths = tuple(sorted((tmp_path / "s").rglob("*.dcm")))
    source = SourceCase("s", "s", (paths,))
    array, grid = dicom.read_series(paths)
    labels = (np.random.default_rng(0).random(array.shape[:3]) * 3).astype(np.uint8)
    labels[:, :, 0] = 0
    dicom_seg.check_source(source)
    dicom_seg.write(tmp_path / "seg.dcm", source, labels, ("background", "liver", "tumour"))
    found, planes, shared = planes_of(tmp_path / "seg.dcm", ("liver", "tumour"))
    steps = shared.PixelMeasuresSequence[0]
    to_lps = np.diag([-1, -1, 1, 1]) @ grid
    np.testing.assert_allclose(
        [float(x) for x in steps.PixelSpacing],
        [np.linalg.norm(to_lps[:3, 1]), np.linalg.norm(to_lps[:3, 0])],
        rtol=1e-4,
    )
    for k in range(1, labels.shape[2]):
        place = to_lps[:3] @ [0, 0, k, 1]
        nearest = min(planes, key=lambda at: np.linalg.norm(np.subtract(at, place)))
        assert np.linalg.norm(np.subtract(nearest, place)) < 1e-2
        for number in (1, 2):
            np.testing.assert_array_equal(planes[nearest][number], number == labels[:, :, k].T)
    assert found.Modality == "SEG"
    assert found.FrameOfReferenceUID == dicom._read(paths[0]).FrameOfReferenceUID


@needs_highdicom
def test_series_are_predicted_as_dicom(save_model, tmp_path, monkeypatch, capsys):
    source = files.write_dicom(tmp_path / "source")
    dataset = files.prepared(source, tmp_path / "data", "dicom", "--recipe=ct", "--no-labels")
    document = json.loads((dataset.path / "dataset.json").read_text())
    document["classes"] = ["background", "bright"]
    document["extra"]["settings"]["values"] = [[0, 0], [1, 1]]
    (dataset.path / "dataset.json").write_text(json.dumps(document))
    workdir = save_model(tmp_path / "run", store.read(dataset.path))
    use_thresholds(monkeypatch, 0)
    found = run(workdir, source, tmp_path / "out", "--format=dicom-seg")
    assert found == [f"{case.id}.dcm" for case in dataset.cases]
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert about["labels"] == {"background": 0, "bright": 1}
    run(workdir, source, tmp_path / "nifti")
    _, planes, _ = planes_of(tmp_path / f"out/{dataset.cases[0].id}.dcm", ("bright",))
    expected = np.asarray(nib.load(tmp_path / f"nifti/{dataset.cases[0].id}.nii.gz").dataobj)
    assert sum(int(plane[1].sum()) for plane in planes.values()) == int((expected == 1).sum()) > 0

    # A series to which no segmentation can refer is a bad case like any other.
    write = dicom_seg.write

    def refuse_first(path, source, *arguments):
        if source.id == dataset.cases[0].id:
            raise UserError(f"{source.id}: no patient")
        write(path, source, *arguments)

    monkeypatch.setattr(dicom_seg, "write", refuse_first)
    with pytest.raises(UserError, match=r"no patient \(--on-error=skip leaves it out\)"):
        run(workdir, source, tmp_path / "more", "--format=dicom-seg")
    capsys.readouterr()
    skipped = run(workdir, source, tmp_path / "skipped", "--format=dicom-seg", "--on-error=skip")
    assert skipped == found[1:]
    said = capsys.readouterr()
    assert f"left out: {dataset.cases[0].id}: no patient" in said.err
    assert ", 1 left out" in said.out


def test_dicom_needs_series_and_highdicom(one, tmp_path, monkeypatch, capsys):
    workdir, source = one
    if importlib.util.find_spec("highdicom"):
        with pytest.raises(UserError, match=r"case_\d+\.nii\.gz: no DICOM series"):
            run(workdir, source / "imagesTs", tmp_path / "out", "--format=dicom-seg")
        skip = ("--format=dicom-seg", "--on-error=skip")
        with pytest.raises(UserError, match="nothing that could be predicted"):
            run(workdir, source / "imagesTs", tmp_path / "out", *skip)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == len(list((source / "imagesTs").iterdir()))
        assert all(line.startswith("left out: ") and "no DICOM series" in line for line in said)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs highdicom; install it with pip install 'ssl3d\["):
        run(workdir, source / "imagesTs", tmp_path / "out", "--format=dicom-seg")
