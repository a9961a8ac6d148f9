import hashlib
import json

import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.phantoms import dataset as phantom

COUNTS = {"train": 2, "val": 1, "test": 1}
SHAPES = {"brain": (16, 20, 18), "abdomen": (16, 20, 18), "fundus": (32, 32)}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module", params=phantom.KINDS)
def written(request, tmp_path_factory):
    kind = request.param
    folder = tmp_path_factory.mktemp("phantoms") / kind
    return kind, phantom.write(kind, folder, SHAPES[kind], COUNTS, seed=3, workers=1)


def test_what_is_written_is_a_prepared_data_set(written):
    kind, dataset = written
    about = phantom.KINDS[kind]
    assert store.read(dataset.path) == dataset
    assert dataset.modalities == about.modalities
    assert dataset.classes == about.classes
    assert {split: len(dataset.split(split)) for split in COUNTS} == COUNTS
    assert len(dataset.subjects()) == 4
    for case in dataset.cases:
        image = store.load_image(dataset, case)
        assert image.shape == (*SHAPES[kind], len(about.modalities))
        assert np.isfinite(image).all()
        assert case.labelled == (about.rank == 3)
        if case.labelled:
            label = store.load_label(dataset, case)
            assert label.max() < len(about.classes)
        else:
            assert 0 <= case.grade < len(about.classes)


def test_intensities_are_normalised(written):
    _, dataset = written
    for case in dataset.cases:
        inside = tuple(slice(*extent) for extent in case.foreground)
        image = store.load_image(dataset, case).astype(np.float32)[inside]
        assert np.abs(image.mean(axis=tuple(range(dataset.rank)))).max() < 1.5
        spread = image.std(axis=tuple(range(dataset.rank)))
        assert 0.2 < spread.min() <= spread.max() < 3


def test_the_affine_is_centred_and_agrees_with_the_spacing(written):
    _, dataset = written
    for case in dataset.cases:
        affine = np.array(case.affine)
        np.testing.assert_allclose(np.diag(affine)[:-1], case.spacing)
        middle = (np.array(case.shape) - 1) / 2
        np.testing.assert_allclose(affine @ [*middle, 1], [0] * dataset.rank + [1], atol=1e-9)


def test_subjects_differ(written):
    _, dataset = written
    images = [store.load_image(dataset, case) for case in dataset.cases]
    assert len({image.tobytes() for image in images}) == len(images)


def test_any_number_of_workers_generates_the_same_bytes(tmp_path):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        phantom.write("fundus", folder, SHAPES["fundus"], COUNTS, seed=3, workers=workers)
    assert len(digests(tmp_path / "1")) == 5
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_another_seed_generates_other_subjects(written):
    kind, dataset = written
    one, same, other = (
        phantom.KINDS[kind].generate(np.random.default_rng(seed), SHAPES[kind]).image
        for seed in ((3, 0), (3, 0), (4, 0))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    stored = store.load_image(dataset, dataset.cases[0])
    np.testing.assert_array_equal(stored, one.astype(np.float16))


def test_an_existing_data_set_is_not_generated_again(written, monkeypatch):
    kind, dataset = written

    def refuse(*arguments, **options):
        raise AssertionError("generated again")

    monkeypatch.setattr(phantom, "ProcessPoolExecutor", refuse)
    assert phantom.write(kind, dataset.path, SHAPES[kind], COUNTS, seed=3) == dataset


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"counts": COUNTS | {"val": 2}}, {"shape": None}], ids=str
)
def test_another_recipe_in_the_same_folder_is_refused(written, change):
    kind, dataset = written
    recipe = {"shape": SHAPES[kind], "counts": COUNTS, "seed": 3} | change
    recipe["shape"] = recipe["shape"] or tuple(side + 1 for side in SHAPES[kind])
    with pytest.raises(UserError, match="holds another data set than the requested one"):
        phantom.write(kind, dataset.path, **recipe)


def test_somebody_elses_data_set_is_not_overwritten(volumes):
    before = json.loads((volumes.path / store.MANIFEST).read_text())
    with pytest.raises(UserError, match="holds another data set"):
        phantom.write("brain", volumes.path, (16, 16, 16), COUNTS)
    assert json.loads((volumes.path / store.MANIFEST).read_text()) == before


@pytest.mark.parametrize(
    ("kind", "shape", "key"),
    [
        ("heart", (16, 16, 16), r"config\.data\.phantom\.kind='heart': choose one of brain"),
        ("brain", (16, 16), r"config\.data\.phantom\.shape=\(16, 16\): brain has 3"),
        ("fundus", (16, 16, 16), r"config\.data\.phantom\.shape"),
        ("brain", (16, 16, 2), r"config\.data\.phantom\.shape"),
        ("fundus", (0, 16), r"config\.data\.phantom\.shape"),
    ],
)
def test_an_invalid_request_is_refused(tmp_path, kind, shape, key):
    with pytest.raises(UserError, match=key):
        phantom.write(kind, tmp_path / "data", shape, COUNTS, workers=1)
    assert not (tmp_path / "data" / store.MANIFEST).exists()
