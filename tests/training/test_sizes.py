"""Crop, depth and batch that follow from the manifest, for every task, rank and kind of volume."""

import json
import math

import numpy as np
import pytest

from ssl3d import bounds, tasks
from ssl3d.configs import datasets
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.models import encoders
from ssl3d.training import loop, problem, sizes
from tests.support.random_weights import write_encoder
from tests.support.shipped_configs import PROXY_CONFIGS, get_config
from tests.support.tiny_configs import tiny_overrides

DOWNSTREAM = ("segment3d", "segment2d", "classify3d", "classify2d")
LABELS = tasks.Labels(("background", "lesion"), (1, 1))

# Shape in voxels, spacing in mm.
COLLECTIONS = {
    "hippocampi": ((35, 51, 35), (1.0, 1.0, 1.0)),
    "thick slices": ((320, 320, 28), (0.7, 0.7, 5.0)),
    "tiny": ((20, 24, 20), (2.0, 2.0, 2.0)),
    "huge": ((512, 512, 600), (0.8, 0.8, 0.8)),
}


def manifest(folder, shape, spacing, count=60, rank=3):
    """A data set of which only the manifest is there; shapes vary by a tenth."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        sides = tuple(int(side * rng.uniform(0.97, 1.07)) for side in shape)
        cases.append(
            store.Case(
                id=f"case_{number:02d}",
                subject=f"subject_{number:02d}",
                split="val" if number % 5 == 0 else "train",
                shape=sides,
                channels=1,
                spacing=spacing,
                affine=tuple(map(tuple, np.eye(rank + 1).tolist())),
                labelled=True,
                order=number,
            )
        )
    classes = LABELS.classes
    dataset = store.Dataset(folder, "made", rank, ("image",), classes, "subject", tuple(cases))
    store.write_manifest(dataset)
    return dataset


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Kind -> data set."""
    folder = tmp_path_factory.mktemp("collections")
    return {kind: manifest(folder / kind, *about) for kind, about in COLLECTIONS.items()}


def configured(name, path, **values):
    """The config of the preset `folder` on the data set at `path`, as a command line gives it."""
    config = get_config(name, "folder")
    config.data.path = str(path)
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
    bounds.derive(config)
    bounds.check(config)
    return config


def seen(config, dataset):
    """Shapes [N, r] as the task sees them."""
    shapes = np.array([case.shape for case in dataset.cases])
    if shapes.shape[1] > config.rank:
        shapes = np.delete(shapes, config.data.slice_axis, 1)
    return shapes


# A joint task derives its parts' settings each time, which takes a second.
PAIRS = [
    (name, kind)
    for name in (*PROXY_CONFIGS, *DOWNSTREAM)
    for kind in COLLECTIONS
    if not name.startswith("joint") or (name, kind) in (("joint2d", "tiny"), ("joint3d", "huge"))
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_choice_suits_images_encoder_and_task(name, kind, collections):
    collection = collections[kind]
    config = configured(name, collection.path)
    shapes, crop = seen(config, collection), np.array(config.data.crop)
    if "coverage" in config.data:
        assert (shapes >= crop).all(axis=1).mean() >= config.data.coverage
    else:
        assert (crop <= np.median(shapes, axis=0)).all()
    reference = get_config(name, "folder")
    assert math.prod(config.data.crop) <= math.prod(reference.data.crop)
    stride = 2 ** (config.encoder.depth - 1)
    for size in tasks.encoded_sizes(config):
        short = stride * (2 if "coverage" in config.data else 1)
        assert all(side % stride == 0 or side < short for side in size), (crop, size, stride)
        assert encoders.smallest_norm(config.encoder, size) >= 8
    assert 2 <= config.batch_size <= 4 * reference.batch_size
    tasks.build(config, None if tasks.needs(config) == "image" else LABELS)


def test_the_choices_for_well_known_kinds_of_volumes(collections):
    def chosen(name, kind):
        config = configured(name, collections[kind].path)
        return config.data.crop, config.encoder.depth, config.batch_size

    assert chosen("segment3d", "hippocampi") == ((32, 48, 32), 4, 8)
    assert chosen("segment3d", "huge") == ((128, 128, 128), 5, 2)
    # As long in mm along the slices as they are thick.
    crop, depth, _ = chosen("segment3d", "thick slices")
    assert crop[0] == crop[1] > 200
    assert crop[2] == 24
    assert depth == 4
    # A cube for what turns.
    crop, _, _ = chosen("rotation3d", "thick slices")
    assert len(set(crop)) == 1


@pytest.mark.parametrize("name", ["rpl3d", "segment3d"])
def test_what_is_set_stays_and_the_rest_follows(name, tmp_path):
    manifest(tmp_path, (200, 200, 200), (1.0, 1.0, 1.0), count=300)
    config = configured(name, tmp_path, data__crop=(48, 48, 48))
    assert config.data.crop == (48, 48, 48)
    assert config.encoder.depth < 5
    assert config.batch_size > get_config(name, "folder").batch_size
    config = configured(name, tmp_path, encoder__depth=3, batch_size=6)
    assert (config.encoder.depth, config.batch_size) == (3, 6)
    assert "batch_size" not in sizes.explain(config)
    # An override that is no multiple does not cost levels.
    assert configured(name, tmp_path, data__crop=(100, 100, 100)).encoder.depth == 5


def test_pictures(tmp_path):
    manifest(tmp_path, (600, 500), (1.0, 1.0), rank=2)
    for name in ("rpl2d", "mae2d", "classify2d"):
        config = configured(name, tmp_path)
        assert 180 <= min(config.data.crop) <= max(config.data.crop) <= 240
        assert config.batch_size == min(get_config(name, "folder").batch_size, 16)


def small(name, dataset):
    """A run of seconds whose sizes follow from a shared data set."""
    chosen = tiny_overrides(name) | {"encoder.dtype": "float32", "steps": 2, "task.jitter": 2}
    values = {key: value for key, value in chosen.items() if key not in sizes.KEYS}
    return configured(name, dataset.path, **values)


def test_a_run_logs_the_choice_keeps_it_and_resumes(pictures, tmp_path, capsys):
    loop.train(small("rpl2d", pictures), tmp_path, stop_at=1)
    said = capsys.readouterr().out
    assert "from images of 24 x 24 voxels of 1 x 1 mm (medians): config.data.crop=(24, 24) " in said
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["data"]["crop"] == [24, 24]
    assert kept["batch_size"] == 4  # half of the training cases
    assert kept["encoder"]["depth"] == 2
    loop.train(small("rpl2d", pictures), tmp_path, stop_at=1)
    assert "going on at step 1" in capsys.readouterr().out


def test_print_config_shows_the_choice_or_says_when_it_is_made(as_typed, tmp_path):
    manifest(tmp_path / "data", (35, 51, 35), (1.0, 1.0, 1.0))
    command = ["ssl3d.main", "--config=configs/segment3d.py:folder", "--print_config"]
    lines = as_typed(*command, f"--config.data.path={tmp_path / 'data'}").stdout.splitlines()
    assert "config.data.crop = (32, 48, 32)  # derived, was (128, 128, 128)" in lines
    lines = as_typed(*command, f"--config.data.path={tmp_path / 'none'}").stdout.splitlines()
    crop = next(line for line in lines if line.startswith("config.data.crop"))
    waits = "chosen when config.data.path holds a prepared data set"
    assert crop == f"config.data.crop = (128, 128, 128)  # {waits}"


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / store.MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        configured("rpl3d", tmp_path)


def test_other_presets_have_sizes_of_their_own():
    for preset in datasets.PRESETS:
        config = get_config("rpl3d", preset)
        follows = "crop" in bounds.rules(config.data)
        assert follows == (preset == "folder")


def test_a_pretrained_encoder_keeps_its_depth(volumes, tmp_path):
    write_encoder(tmp_path, 3, 2, {"kind": "resunet", "width": 4, "depth": 1, "norm": "group"})
    config = small("rpl3d", volumes)
    assert config.encoder.depth == 3
    config.init.encoder = str(tmp_path)
    given, _ = problem.open_problem(config)
    assert given.config.encoder.depth == 1


def test_strides_that_differ_by_axis_leave_thin_volumes_their_slices(collections):
    strides = ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    encoder = {"encoder__kind": "resenc", "encoder__depth": 5, "encoder__strides": strides}
    config = configured("segment3d", collections["thick slices"].path, **encoder)
    assert config.data.crop[2] == 28
    assert not any(side % 16 for side in config.data.crop[:2])
    assert min(config.data.crop[:2]) > 200
