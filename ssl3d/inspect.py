"""Pictures of what the network is shown: the image, its patches, and what it is asked.

python -m ssl3d.inspect --config=configs/rpl3d.py[:DATASET[,VARIANT]] [--output=FILE.png]
                        [--cases=N] [--split=SPLIT] [--config.key=value ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")  # a file is all that is asked for, also where there is no screen

import matplotlib.pyplot as plt
import ml_collections
import numpy as np

from ssl3d import cli, tasks
from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.training.cases import labelled, labels_of, open_dataset

# Of the values shown: the brightest and darkest hundredth saturate, as in a viewer's window.
WINDOW = (1, 99)
# The layout, in units of a small picture: nine side by side, the whole image three times as large.
_COLUMNS, _LARGE, _TITLE = 9, 3, 0.3
_INCHES = 1.5


def middle_views(image: np.ndarray) -> list[tuple[tuple[int, int], int | None, np.ndarray]]:
    """The middle slices of an image [*S, C] as (axes shown, axis cut, [H, W, C]).

    One picture in 2D, three orthogonal ones in 3D (axial, coronal, sagittal).
    """
    if image.ndim == 3:
        return [((0, 1), None, image)]
    views = []
    for cut in (2, 1, 0):
        shown = tuple(axis for axis in range(3) if axis != cut)
        views.append((shown, cut, np.take(image, image.shape[cut] // 2, axis=cut)))
    return views


def draw(axes: plt.Axes, picture: np.ndarray, colour: bool, window: np.ndarray) -> None:
    """Shows [H, W, C] in colours (a photograph, first axis down) or its first channel in grey.

    `window` [2, C] is what is black and what is white.

    Slices of volumes are turned so that anterior or superior is up, as radiologists expect.
    """
    low, high = window
    picture = np.clip((picture.astype(np.float32) - low) / np.maximum(high - low, 1e-6), 0, 1)
    if colour:
        axes.imshow(picture, interpolation="nearest")
    else:
        axes.imshow(picture[..., 0].T, cmap="gray", vmin=0, vmax=1, origin="lower")
    axes.set_xticks([])
    axes.set_yticks([])


def render(
    config: ml_collections.ConfigDict,
    dataset: store.Dataset,
    cases: Sequence[store.Case],
    output: Path,
) -> None:
    """Writes one PNG: a block for each case, the whole image above what the network gets of it."""
    task = tasks.build(config, labels_of(dataset, dataset.cases))
    blocks = []
    for number, case in enumerate(cases):
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
        record = task.record(rng, example, True)
        inputs, targets = jax.device_get(
            task.views(jax.random.fold_in(jax.random.key(config.seed), number), record, True)
        )
        blocks.append((case, example.image, task.panels(record, inputs, targets)))
    views = 1 if config.rank == 2 else 3
    rows = [-(-views * (len(panels) - 1) // _COLUMNS) for *_, panels in blocks]
    heights = [_LARGE + count * (1 + _TITLE) + 2 * _TITLE for count in rows]
    figure = plt.figure(figsize=(_COLUMNS * _INCHES, sum(heights) * _INCHES))
    parts = np.atleast_1d(figure.subfigures(len(blocks), 1, height_ratios=heights))
    for part, count, (case, image, panels) in zip(parts, rows, blocks, strict=True):
        part.suptitle(f"{config.name}: {case.id}", fontsize=10)
        grid = part.add_gridspec(
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
        large = [part.add_subplot(grid[0, _LARGE * i : _LARGE * (i + 1)]) for i in range(views)]
        _show(large, whole, np.asarray(image, np.float32), config.rank)
        small = [
            part.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS])
            for i in range(views * len(shown))
        ]
        for i, panel in enumerate(shown):
            _show(small[views * i : views * (i + 1)], panel, panel.image, config.rank)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def _show(axes: Sequence[plt.Axes], panel: tasks.Panel, image: np.ndarray, rank: int) -> None:
    """The middle views of `image` [*S, C] side by side, with the panel's title and boxes."""
    colour = rank == 2 and image.shape[-1] == 3
    # A photograph's colours are normalised apart, so each has its own window.
    window = np.percentile(image.reshape(-1, image.shape[-1]), WINDOW, axis=0)
    for place, (shown, cut, picture) in zip(axes, middle_views(image), strict=True):
        draw(place, picture, colour, window)
        for index, box in enumerate(panel.boxes):
            _outline(place, box, shown, cut, image.shape, f"C{index % 10}", colour)
    axes[0].set_title(panel.title, fontsize=8, loc="left", pad=3)


def _outline(
    axes: plt.Axes,
    box: tasks.Box,
    shown: tuple[int, int],
    cut: int | None,
    shape: tuple[int, ...],
    colour: str,
    rows_down: bool,
) -> None:
    """Draws the box where the slice cuts it; `rows_down`: a picture, whose first axis is down."""
    if cut is not None:
        middle = shape[cut] // 2
        if not box.start[cut] <= middle < box.start[cut] + box.shape[cut]:
            return
    x, y = (shown[1], shown[0]) if rows_down else shown
    axes.add_patch(
        plt.Rectangle(
            (box.start[x] - 0.5, box.start[y] - 0.5),
            box.shape[x],
            box.shape[y],
            fill=False,
            edgecolor=colour,
            linewidth=1,
        )
    )
    centre = [box.start[axis] + box.shape[axis] / 2 for axis in (x, y)]
    axes.text(*centre, box.name, color=colour, fontsize=7, ha="center", va="center", clip_on=True)


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m ssl3d.inspect", description=__doc__, epilog=cli.CONFIG_HELP)
    parser.add_argument("--output", type=Path, help="the PNG (default: inspect_NAME.png)")
    parser.add_argument("--cases", type=int, default=2, help="how many cases (default: 2)")
    parser.add_argument("--split", default="train", choices=store.SPLITS)
    options, config = cli.parse_with_config(parser, arguments)
    if options.cases < 1:
        parser.error(f"--cases={options.cases}: must be 1 or more")
    dataset = open_dataset(config)
    cases = dataset.split(options.split)
    if tasks.needs(config) != "image":
        cases = labelled(config, cases)
    cases = cases[: options.cases]
    if not cases:
        raise UserError(f"{dataset.path}: no cases in the split {options.split}")
    output = options.output or Path(f"inspect_{config.name}.png")
    render(config, dataset, cases, output)
    print(output)
    return 0


if __name__ == "__main__":
    cli.run(main)
