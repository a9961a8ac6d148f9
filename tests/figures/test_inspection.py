import dataclasses

import matplotlib.image
import numpy as np
import pytest

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.figures import inspection
from ssl3d.training import loop
from tests.support.event_files import summaries


@pytest.mark.parametrize(
    ("name", "panels"),
    [
        ("rotation3d", 2),
        ("rpl2d", 5),
        ("mae3d", 4),
        ("mae2d", 4),
        ("contrast3d", 3),
        ("joint2d", 6),
        ("segment3d", 3),
        ("segment2d", 3),
        ("classify2d", 2),
    ],
)
def test_every_panel_of_the_task_is_shown(tiny, datasets, name, panels):
    pictures = ("rpl2d", "mae2d", "joint2d", "classify2d")
    dataset = datasets[2 if name in pictures else 3]
    config = tiny(name, dataset.path)
    inspected = inspection.examples(config, dataset, dataset.cases[:2])
    figure = inspection.figure(inspected, config.name, config.rank)
    views = 1 if config.rank == 2 else 3
    for block, case in zip(figure.subfigs, inspected, strict=True):
        assert len(case.panels) == panels
        assert len(block.axes) == views * panels
        titles = [axes.get_title(loc="left") for axes in block.axes[::views]]
        assert titles == [panel.title for panel in case.panels]
        # In each middle slice, the boxes that it cuts.
        boxes = case.panels[0].boxes
        for axes in block.axes[:views]:
            assert {text.get_text() for text in axes.texts} <= {box.name for box in boxes}
        assert any(axes.patches for axes in block.axes[:views])


def test_the_same_seed_gives_the_same_picture(tiny, pictures, tmp_path):
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        files.append(tmp_path / "new" / f"{name}.png")
        inspection.inspect(tiny("jigsaw2d", pictures.path, seed=seed), "train", 1, files[-1])
    first, again, other = (matplotlib.image.imread(file) for file in files)
    np.testing.assert_array_equal(first, again)
    assert first.std() > 0.05
    assert other.shape != first.shape or (other != first).any()


@pytest.mark.parametrize("name", ["mae2d", pytest.param("rpl2d", marks=pytest.mark.slow)])
def test_a_run_draws_what_it_shows_and_is_answered(tiny, pictures, tmp_path, name):
    config = tiny(name, pictures.path, steps=2, log__pictures_every=2)
    drawn = []

    def draw(given, variables, step):
        shown = inspection.training_picture(given, variables, step)
        drawn.append((step, shown, inspection.training_picture(given, variables, step + 1)))
        return shown

    assert loop.train(config, tmp_path, draw=draw)
    ((step, shown, other),) = drawn
    assert step == 2
    assert shown.dtype == np.uint8
    assert shown.std() > 10
    assert other.shape == shown.shape  # of other cases
    assert (other != shown).any()
    (logged,) = [value for at, value in summaries(tmp_path) if value.tag == "inspect"]
    assert (logged.image.height, logged.image.width) == shown.shape[:2]


def test_a_split_without_cases_is_refused(tiny, pictures, volumes, tmp_path):
    with pytest.raises(UserError, match="no cases in the split unlabelled"):
        inspection.inspect(tiny("rpl2d", pictures.path), "unlabelled", 1, tmp_path / "a.png")


def test_downstream_tasks_show_labelled_cases_alone(tiny, make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", 2, 3)
    first, *others = dataset.cases
    without = dataclasses.replace(first, grade=None)
    store.write_manifest(dataclasses.replace(dataset, cases=(without, *others)))
    inspection.inspect(tiny("classify2d", dataset.path), "train", 1, tmp_path / "a.png")
    only = dataclasses.replace(dataset, cases=(without, *dataset.split("val", "test")))
    store.write_manifest(only)
    with pytest.raises(UserError, match="no cases in the split train"):
        inspection.inspect(tiny("classify2d", dataset.path), "train", 1, tmp_path / "b.png")
