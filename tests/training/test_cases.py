import dataclasses
import importlib
import shutil

import pytest

from ssl3d.configs.datasets import PRESETS
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.phantoms import dataset as phantom
from ssl3d.training.cases import choose_cases, open_dataset


def test_the_data_set_of_the_config_is_opened(tiny, datasets):
    for rank, dataset in datasets.items():
        assert open_dataset(tiny(f"rpl{rank}d", dataset.path)) == dataset


def test_volumes_serve_2d_configs(tiny, volumes):
    assert open_dataset(tiny("rpl2d", volumes.path)).rank == 3


def test_a_phantom_is_drawn_on_first_use(tiny, tmp_path, monkeypatch):
    asked = []

    def draw(kind, folder, shape, counts, seed):
        asked.append((kind, folder, shape, counts, seed))
        raise UserError("drawn")

    monkeypatch.setattr(phantom, "write", draw)
    (tmp_path / "brain").mkdir()
    config = tiny("rpl3d", tmp_path / "brain", data__phantom__kind="brain", data__phantom__seed=5)
    config.data.phantom.shape = (16, 16, 16)
    with pytest.raises(UserError, match="drawn"):
        open_dataset(config)
    counts = {split: config.data.phantom[split] for split in ("train", "val", "test")}
    assert asked == [("brain", tmp_path / "brain", (16, 16, 16), counts, 5)]


def test_a_mistyped_path_is_no_place_for_a_phantom(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phantom, "write", lambda *_: pytest.fail("written"))
    config = tiny("rpl3d", tmp_path / "hipocampus", data__phantom__kind="brain")
    with pytest.raises(UserError, match=r"hipocampus: no such folder, .*rpl3d:folder; .*mkdir"):
        open_dataset(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in PRESETS if "phantom" in name])
def test_the_folder_of_a_preset_is_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phantom, "write", lambda *_: None)
    config = importlib.import_module("ssl3d.configs.rpl2d").get_config(name)
    with pytest.raises(UserError, match="no prepared data set"):  # as nothing was written
        open_dataset(config)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("rpl3d", {"data__path": ""}, r"config\.data\.path is empty.*ssl3d\.prepare"),
        ("rpl3d", {"data__path": "/nowhere"}, r"/nowhere: no prepared data set here"),
        ("rpl2d", {"data__slice_axis": 3}, r"config\.data\.slice_axis=3"),
        ("rpl2d", {"data__slice_axis": -1}, r"config\.data\.slice_axis=-1"),
    ],
)
def test_what_cannot_be_opened_is_named(tiny, volumes, name, overrides, message):
    with pytest.raises(UserError, match=message):
        open_dataset(tiny(name, volumes.path, **overrides))


def test_pictures_are_refused_for_3d_configs(tiny, pictures):
    with pytest.raises(UserError, match=r"holds pictures \(2D\); a 3D config needs volumes"):
        open_dataset(tiny("rpl3d", pictures.path))


def test_cases_are_those_of_the_splits(tiny, volumes):
    train, validation = choose_cases(tiny("rpl3d"), volumes)
    assert [case.id for case in train] == [f"case_{i:02d}" for i in range(8)]
    assert [case.id for case in validation] == [f"case_{i:02d}" for i in range(8, 12)]


def test_cases_without_labels_are_trained_on_too(tiny, volumes):
    cases = tuple(
        dataclasses.replace(case, split="unlabelled") if case.split == "test" else case
        for case in volumes.cases
    )
    train, _ = choose_cases(tiny("rpl3d"), dataclasses.replace(volumes, cases=cases))
    assert len(train) == 10
    config = tiny("rpl3d", data__train_splits=("train",))
    train, _ = choose_cases(config, dataclasses.replace(volumes, cases=cases))
    assert len(train) == 8


@pytest.mark.parametrize(
    ("splits", "kept", "message"),
    [
        (("tests",), store.SPLITS, "no split 'tests'; choose from train, val"),
        (("unlabelled",), store.SPLITS, "no cases to train on"),
        ((), store.SPLITS, "no cases to train on"),
        (("train",), ("train", "test"), "no cases in the split val"),
    ],
)
def test_splits_without_cases_are_refused(tiny, volumes, splits, kept, message):
    dataset = dataclasses.replace(volumes, cases=volumes.split(*kept))
    with pytest.raises(UserError, match=message):
        choose_cases(tiny("rpl3d", data__train_splits=splits), dataset)


# Labels.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classify3d", r"no case has a grade; .* ssl3d\.prepare --csv=FILE"),
        ("segment3d", r"no case has a label map; .* ssl3d\.prepare --labels=DIR"),
    ],
)
def test_data_without_labels_name_the_option_that_gives_them(tiny, volumes, name, message):
    cases = tuple(dataclasses.replace(case, labelled=False) for case in volumes.cases)
    with pytest.raises(UserError, match=message):
        choose_cases(tiny(name), dataclasses.replace(volumes, cases=cases))


def test_label_fractions_are_nested_and_leave_validation_alone(tiny, pictures):
    for seed in (0, 1, 2):
        before = set()
        for fraction in (0.1, 0.3, 0.6, 1.0):
            config = tiny("classify2d", data__label_fraction=fraction, data__label_seed=seed)
            training, validation = choose_cases(config, pictures)
            ids = {case.id for case in training}
            assert before <= ids
            assert [case.id for case in validation] == [c.id for c in pictures.split("val")]
            subjects = {case.subject for case in pictures.split("train")}
            assert len({case.subject for case in training}) == max(
                1, round(fraction * len(subjects))
            )
            before = ids
        assert before == {case.id for case in pictures.split("train")}


def test_another_label_seed_is_another_subset(tiny, pictures):
    chosen = set()
    for seed in range(6):
        config = tiny("classify2d", data__label_fraction=0.3, data__label_seed=seed)
        chosen.add(tuple(case.id for case in choose_cases(config, pictures)[0]))
    assert len(chosen) > 2


def test_cases_without_a_label_are_left_out(tiny, volumes, tmp_path):
    shutil.copytree(volumes.path, tmp_path / "data")
    dataset = store.read(tmp_path / "data")
    cases = tuple(
        dataclasses.replace(case, labelled=index not in (2, 9))
        for index, case in enumerate(dataset.cases)
    )
    config = tiny("segment3d", tmp_path / "data")
    training, validation = choose_cases(config, dataclasses.replace(dataset, cases=cases))
    assert (len(training), len(validation)) == (7, 3)
