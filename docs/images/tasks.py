"""Draws docs/images/tasks.png, what tasks show the network, from the built-in brain.

python -m docs.images.tasks DATA_FOLDER
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ssl3d.figures import inspection, slices
from ssl3d.training.cases import open_dataset

QUESTIONS = {
    "cpc": "contrastive predictive coding: which patch follows further down the column?",
    "rpl": "relative patch location: where does each patch lie, seen from the centre?",
    "jigsaw": "jigsaw: by which permutation were the patches shuffled?",
    "rotation": "rotation: by which quarter turns was the volume rotated?",
    "exemplar": "exemplar: which volume is a transformed version of which?",
    "mae": "masked reconstruction: what do the masked blocks show?",
    "contrast": "contrast: which crops are of the same volume?",
}
COLUMNS = 7
CUT = 1  # coronal
CASE, SEED = 3, 5
TURNS = 6


def panels(task: str, folder: Path) -> tuple[np.ndarray, list]:
    """The whole image [*S, C] of a case, and a task's panels of it."""
    config = importlib.import_module(f"ssl3d.configs.{task}3d").get_config("phantom_brain")
    config.data.path, config.seed = str(folder), SEED
    if "turns" in config.task:
        config.task.turns = TURNS
    dataset = open_dataset(config)
    (found,) = inspection.examples(config, dataset, dataset.cases[CASE : CASE + 1])
    return np.asarray(found.image, np.float32), found.panels


def most_varied(shown: list, count: int) -> list:
    """The panels with the most to see, in their order; of each kind of panel some."""
    kinds: dict[str, list[int]] = {}
    for index, panel in enumerate(shown):
        kind = panel.title.partition(":")[0].rstrip("0123456789 ") if ":" in panel.title else ""
        kinds.setdefault(kind, []).append(index)
    spread = [float(np.std(slices.middle_views(p.image)[CUT][2][..., 0])) for p in shown]
    kept: list[int] = []
    for indices in sorted(kinds.values(), key=len):
        kept += sorted(indices, key=lambda i: -spread[i])[: count - len(kept)]
    return [shown[index] for index in sorted(kept)]


def main(folder: Path) -> None:
    """Writes the picture; generates the data in `folder` on first use."""
    figure = Figure((COLUMNS * 1.5, len(QUESTIONS) * 1.95))
    blocks = figure.subfigures(len(QUESTIONS), 1, hspace=0)
    for (task, question), block in zip(QUESTIONS.items(), blocks, strict=True):
        image, (whole, *shown) = panels(task, folder)
        block.suptitle(question, x=0.01, y=0.98, ha="left", fontsize=10)
        margins = {"left": 0.01, "right": 0.99, "bottom": 0.02, "top": 0.78, "wspace": 0.06}
        places = block.subplots(1, COLUMNS, gridspec_kw=margins)
        for place in places:
            place.axis("off")
        # Too small for names, which the other panels have.
        boxes = tuple(box._replace(name="") for box in whole.boxes)
        inspection.show_panel(places[:1], whole._replace(title="", boxes=boxes), image, cut=CUT)
        for place, panel in zip(places[1:], most_varied(shown, COLUMNS - 1), strict=False):
            place.axis("on")
            inspection.show_panel([place], panel, panel.image, cut=CUT)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
