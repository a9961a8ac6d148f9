"""The noise audit: chance for the shipped tasks, and an alarm for a task with a shortcut."""

import importlib
import json

import numpy as np
import pytest

from ssl3d import bounds, inspect
from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.phantoms import noise
from ssl3d.training import audit, loop, problem
from tests.support.shipped_configs import PROXY

# Volumes of noise can be recognised, and smooth noise filled in; joint tasks are their parts.
LEARN_FROM_NOISE = ("contrast", "exemplar", "mae")
AUDITED = [
    f"{task}{rank}d"
    for task in PROXY
    if task not in {*LEARN_FROM_NOISE, "joint"}
    for rank in (3, 2)
]
# Enough to tell chance from a shortcut.
SMALL = {"steps": 120, "images": 256}
SHAPES = [(26, 30, 27), (31, 28, 30), (27, 38, 27), (30, 30, 24)]

MIRRORED = """
from ssl3d import tasks
from ssl3d.data.pipeline import Pieces, crop
from ssl3d.tasks import grid, rpl


def build(config):
    task = rpl.build(config)
    size = tuple(side + 6 for side in config.data.crop)  # reaches beyond the image
    cells = grid.patch_grid(size, config.task.per_side, jitter=config.task.jitter)

    def record(rng, example, train):
        image, origin = crop(rng, example.image, size, train, beyond=True)
        chosen = task.record.choose(rng)
        at = grid.starts(cells, rng)[chosen["chosen"]]
        return {"patches": Pieces(image, at, cells.patch), "starts": origin + at, **chosen}

    return task._replace(record=record)
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Volumes of mixed shapes that are blunter along the last axis, like resampled slices."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    cases = []
    for index in range(32):
        shape = SHAPES[index % len(SHAPES)]
        store.write_arrays(
            folder, f"s{index:02d}", noise.blurred_noise(rng, shape, 1, (1, 1, 2)), None
        )
        cases.append(
            store.Case(
                id=f"s{index:02d}",
                subject=f"s{index:02d}",
                split="val" if index % 5 == 0 else "train",
                shape=shape,
                channels=1,
                spacing=(1.0, 1.0, 1.0),
                affine=tuple(map(tuple, np.eye(4).tolist())),
            )
        )
    dataset = store.Dataset(folder, "scans", 3, ("mr",), ("background",), "case", tuple(cases))
    store.write_manifest(dataset)
    return dataset


def config_of(tiny, name, dataset, **overrides):
    return tiny(name, dataset.path, data__crop=(24,) * int(name[-2]), batch_size=8, **overrides)


@pytest.mark.parametrize(
    "name",
    ["rpl3d", *(pytest.param(f"rotation{r}d", marks=pytest.mark.slow) for r in (2, 3))],
)
def test_shipped_tasks_stay_at_chance(tiny, scans, name):
    result = audit.audit(config_of(tiny, name, scans), **SMALL)
    assert result.low <= result.chance <= result.high, result.verdict
    assert result.high - result.low < 0.15


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", ["phantom", "hippocampus"])
@pytest.mark.parametrize("name", AUDITED)
def test_every_shipped_config_stays_at_chance(request, tmp_path, name, preset):
    """One interval of twenty misses chance; then noise of another seed decides."""
    config = importlib.import_module(f"ssl3d.configs.{name}").get_config(preset)
    config.data.path = str(tmp_path / "data")
    if preset == "hippocampus":
        from ssl3d import prepare

        source = request.getfixturevalue("task04")
        arguments = ["--layout=msd", f"--source={source}", f"--output={config.data.path}"]
        prepare.main(arguments)
    verdicts = []
    for config.seed in (0, 1):
        result = audit.audit(config)
        if result.low <= result.chance <= result.high:
            return
        verdicts.append(result.verdict)
    pytest.fail("\n".join(verdicts))


def test_axes_of_different_sharpness_give_rotations_away_unless_evened_out(tiny, scans):
    config = config_of(tiny, "rotation2d", scans, data__slice_axis=0, task__even=False)
    result = audit.audit(config, **SMALL)
    assert not result.passed
    assert "a shortcut" in result.verdict
    assert result.low > result.chance


def test_a_mirrored_border_is_a_shortcut(tiny, scans, tmp_path, monkeypatch):
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mirrored.py").write_text(MIRRORED)
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(tiny, "rpl2d", scans)
    config.task.name = "outside.mirrored"
    result = audit.audit(config, **SMALL)
    assert not result.passed, result.verdict


def test_a_downstream_task_has_no_audit(tiny, volumes):
    with pytest.raises(UserError, match="segmentation learns from labels"):
        audit.audit(tiny("segment3d", volumes.path))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((f"{task}2d", {}) for task in LEARN_FROM_NOISE),
        ("contrast2d", {"task__objective": "overlap", "task__view": (8, 8)}),
        ("joint2d", {"task__parts": ("exemplar", "rpl")}),
    ],
)
def test_what_can_be_learned_on_noise_has_no_audit(tiny, scans, monkeypatch, name, settings):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=f"--audit: {name[:-2]} can be learned on noise too"):
        audit.audit(config_of(tiny, name, scans, **settings))


def test_the_command(tiny_options, call_command, scans, monkeypatch):
    monkeypatch.setattr(audit, "_LINEAR_STEPS", 120)
    monkeypatch.setattr(audit, "_VOXELS", 2**22)
    options = tiny_options("rotation2d", scans.path, data__slice_axis=0)
    status, said, _ = call_command(inspect.main, *options, "--audit", "--config.task.even=False")
    assert status == 1
    assert "rotation2d_folder: a linear model, 120 steps on noise: accuracy 0." in said
    status, _, error = call_command(inspect.main, *options, "--network")
    assert status == 2
    assert "--audit" in error


# What a run does with a collection of small images.


def test_a_run_fits_its_crop_and_names_the_images_it_leaves_out(tiny, scans, tmp_path, capsys):
    config = tiny("rotation3d", scans.path, data__crop=(28,) * 3, data__coverage=0.75, steps=1)
    loop.train(config, tmp_path)
    said = capsys.readouterr().out
    assert "crop 28 x 28 x 28 reduced to 26 x 26 x 26 voxels" in said
    assert "8 of 32 images are smaller than the crop of 26 x 26 x 26 voxels" in said
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["data"]["crop"] == [26, 26, 26]
    small = [case.id for case in scans.cases if case.shape == (30, 30, 24)]
    assert sorted(saved["cases.left_out"]) == small
    assert loop.train(config, tmp_path)  # a finished run is resumed with the same fit


def test_a_collection_too_small_for_the_task_is_refused_in_one_line(tiny, scans, tmp_path):
    config = tiny("rpl3d", scans.path, encoder__depth=5, data__crop=(120,) * 3)
    with pytest.raises(
        UserError, match=r"no image is large enough for rpl: the largest has 27 x 38"
    ):
        loop.train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_the_jitter_follows_the_fitted_crop(scans):
    config = importlib.import_module("ssl3d.configs.rpl3d").get_config("folder")
    config.update_from_flattened_dict(
        {
            "data.path": str(scans.path),
            "data.coverage": 1.0,
            "data.crop": (64, 64, 64),
            "encoder.depth": 2,
        }
    )
    bounds.derive(config)
    problem.open_problem(config)
    assert config.data.crop == (26, 28, 24)
    assert config.task.jitter == 2  # a quarter of a cell of 8 voxels


def test_pictures_show_fitted_crops_of_images_that_hold_them(
    tiny_options, call_command, scans, tmp_path
):
    options = tiny_options("rotation3d", scans.path, data__crop="(28,28,28)", data__coverage=0.75)
    status, said, _ = call_command(inspect.main, *options, f"--output={tmp_path / 'x.png'}")
    assert status == 0
    assert "reduced to 26 x 26 x 26" in said
    assert (tmp_path / "x.png").stat().st_size > 1000
