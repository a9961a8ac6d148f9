"""What a task shows the network: whole images, their patches, and the network's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ssl3d import tasks, xla
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.figures import slices
from ssl3d.training import trackers
from ssl3d.training.cases import labelled, labels_of, open_dataset
from ssl3d.training.crop_fit import holds_crop
from ssl3d.training.problem import Problem, open_problem
from ssl3d.training.step import Variables

# In units of a panel: panels per row, the side of the whole image, the height of a title.
_COLUMNS, _LARGE, _TITLE = 9, 3, 0.3
_INCHES = 1.5
_WATCHED = 2  # cases of a picture while a run trains


class Inspected(NamedTuple):
    """One case: its whole image [*S, C], and the task's panels of one training example."""

    case: store.Case
    image: np.ndarray
    panels: list[tasks.Panel]


def inspect(config: ml_collections.ConfigDict, split: str, count: int, output: Path) -> None:
    """Writes a PNG of the first `count` cases of the split that a run could use.

    Raises:
      UserError: no data set, no such case in the split, or settings that contradict each other.
    """
    if tasks.needs(config) == "image":
        config = config.copy_and_resolve_references()
        given, _ = open_problem(config)  # fits the crop to the collection
        for note in given.notes:
            print(note)
        dataset = given.dataset
        cases = tuple(case for case in dataset.split(split) if holds_crop(config, case))
    else:
        dataset = open_dataset(config)
        cases = labelled(config, dataset.split(split))
    if not cases:
        raise UserError(f"{dataset.path}: no cases in the split {split}")
    inspected = examples(config, dataset, cases[:count])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure(inspected, config.name, config.rank).savefig(output, dpi=100)


def training_picture(given: Problem, variables: Variables, step: int) -> trackers.Picture:
    """What a run shows the network and what it answers, for a few training cases of a step.

    Args:
      variables: of the network, without gradients.
    """
    config, cases = given.config, given.train_cases
    chosen = [cases[(step + number) % len(cases)] for number in range(min(_WATCHED, len(cases)))]
    variables = jax.device_get(variables)  # of several hosts, one draws

    @xla.jit_once
    def answer(inputs: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], inputs)
        outputs = given.task.network.apply(variables, batch, train=False)
        return jax.tree.map(lambda leaf: leaf[0], outputs)

    inspected = examples(config, given.dataset, chosen, given.task, answer, first=step)
    canvas = FigureCanvasAgg(figure(inspected, f"{config.name}, step {step}", config.rank))
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def examples(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    task: tasks.Task | None = None,
    answer: Callable[[Any], Any] | None = None,
    first: int = 0,
) -> list[Inspected]:
    """One training example per case, augmented with the config's seed.

    Args:
      task: if it is built already.
      answer: the inputs of one example -> the network's outputs, to be shown too.
      first: number of the first example; others are sampled and augmented differently.
    """
    task = task or tasks.build(config, labels_of(dataset, dataset.cases))
    inspected = []
    for number, case in enumerate(cases, start=first):
        rng = np.random.default_rng((config.seed, number))
        example = pipeline.open_example(
            dataset,
            case,
            config.rank,
            config.data.slice_axis,
            config.data.margin,
            rng,
            label_map=tasks.needs(config) == "label_map",
        )
        record = pipeline.arrays(task.record(rng, example, True))
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        on_device = jax.tree.map(jnp.asarray, record)
        inputs, targets = task.views(key, on_device, True)
        outputs = answer(inputs) if answer else None
        panels = task.panels(record, *jax.device_get((inputs, targets, outputs)))
        inspected.append(Inspected(case, example.image, panels))
    return inspected


def figure(inspected: Sequence[Inspected], name: str, rank: int) -> Figure:
    """A block per case: the whole image with its patches, below it what the network receives."""
    views = 1 if rank == 2 else 3
    rows = [-(-views * (len(case.panels) - 1) // _COLUMNS) for case in inspected]
    heights = [_LARGE + count * (1 + _TITLE) + 2 * _TITLE for count in rows]
    result = Figure(figsize=(_COLUMNS * _INCHES, sum(heights) * _INCHES))
    blocks = result.subfigures(len(inspected), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, count, (case, image, panels) in zip(blocks, rows, inspected, strict=True):
        block.suptitle(f"{name}: {case.id}", fontsize=10)
        grid = block.add_gridspec(
            1 + count,
            _COLUMNS,
            height_ratios=[_LARGE, *[1] * count],
            left=0.01,
            right=0.99,
            bottom=0.01,
            top=1 - 1.5 * _TITLE / (_LARGE + count),
            wspace=0.04,
            hspace=0.3,
        )
        whole, *shown = panels
        large = [block.add_subplot(grid[0, _LARGE * i : _LARGE * (i + 1)]) for i in range(views)]
        show_panel(large, whole, np.asarray(image, np.float32))
        small = [
            block.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS])
            for i in range(views * len(shown))
        ]
        for i, panel in enumerate(shown):
            assert panel.image is not None  # the first panel alone stands for the whole image
            show_panel(small[views * i : views * (i + 1)], panel, panel.image)
    return result


def show_panel(
    places: Sequence[Axes], panel: tasks.Panel, image: np.ndarray, cut: int | None = None
) -> None:
    """The middle views of `image` [*S, C] side by side, with the panel's title and boxes.

    Args:
      cut: the axis that the only view cuts; None for all views.
    """
    colour = slices.is_photograph(image)
    limits = slices.window(image)
    views = [view for view in slices.middle_views(image) if cut in (None, view[1])]
    for axes, (shown, across, view) in zip(places, views, strict=True):
        slices.show(axes, view, colour, limits)
        if panel.label is not None:
            part = panel.label
            middle = 0 if across is None else part.shape[across] // 2
            slices.overlay(axes, part if across is None else part.take(middle, across), colour)
        if across is not None and panel.image is None:
            axes.set_title(slices.PLANES[across], fontsize=8, loc="right", pad=3)
        for number, box in enumerate(panel.boxes, start=1):
            _outline(axes, box, shown, across, image.shape, slices.colour_of(number), colour)
    places[0].set_title(panel.title, fontsize=8, loc="left", pad=3)


def _outline(
    axes: Axes,
    box: tasks.Box,
    shown: tuple[int, int],
    cut: int | None,
    shape: tuple[int, ...],
    colour: str,
    rows_down: bool,
) -> None:
    """Outlines the box where the slice cuts it; `rows_down`: the first axis runs downwards."""
    if cut is not None:
        middle = shape[cut] // 2
        if not box.start[cut] <= middle < box.start[cut] + box.shape[cut]:
            return
    x, y = (shown[1], shown[0]) if rows_down else shown
    axes.add_patch(
        Rectangle(
            (box.start[x] - 0.5, box.start[y] - 0.5),
            box.shape[x],
            box.shape[y],
            fill=False,
            edgecolor=colour,
            linewidth=1.2,
            path_effects=slices.outlined(2.4),
        )
    )
    centre_x, centre_y = (box.start[axis] + box.shape[axis] / 2 for axis in (x, y))
    axes.text(
        centre_x,
        centre_y,
        box.name,
        color="white",
        fontsize=7,
        ha="center",
        va="center",
        clip_on=True,
        path_effects=slices.outlined(),
    )
