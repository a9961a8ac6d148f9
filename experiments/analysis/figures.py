"""Figures of a study: data efficiency and convergence with 95 % bands, as PNG and PDF."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl3d.atomic import atomic_write
from ssl3d.experiments.analysis import statistics
from ssl3d.experiments.analysis.findings import Findings, Key
from ssl3d.experiments.engine.study import DOUBLES, METHODS, SCRATCH, Study

_BAND: dict[str, Any] = {"alpha": 0.12, "linewidth": 0}
# 2D or not, frozen or not.
_DASHES = {(False, False): "-", (True, False): "--", (False, True): ":", (True, True): "-."}


def data_efficiency(study: Study, findings: Findings) -> Figure:
    """The test score over the number of labels, with 95 % intervals as bands."""
    figure, (axes,) = _figure(1)
    name, labels, lines = study.columns[0].name, findings.labels, list(_lines(findings))
    for number, (key, line) in enumerate(lines):
        found = {i: findings.scores.get((key, amount)) for i, amount in enumerate(labels)}
        points = {i: (score.value, *score.interval()) for i, score in found.items() if score}
        table = pd.DataFrame(points, index=["mean", "low", "high"], dtype=float).T
        # A band of one amount of labels would have no width: bars side by side.
        bars = len(labels) == 1
        at = table.index.to_numpy(float) + (number - (len(lines) - 1) / 2 if bars else 0)
        axes.plot(at, table["mean"], marker="o", **line)
        if bars:
            axes.vlines(at, table["low"], table["high"], line["color"], line["linestyle"])
        else:
            axes.fill_between(at, table["low"], table["high"], color=line["color"], **_BAND)
    # The scores set the axis: bands of few repetitions are wide.
    values = np.array([value for place in findings.runs for value in findings.values(*place, name)])
    if np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.1 * (high - low) or 0.01
        axes.set_ylim(low - room, high + room)
    axes.set_xticks(np.arange(len(labels)), labels)
    axes.set(xlabel="labelled training subjects", ylabel=f"{name}, test set")
    figure.axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def convergence(findings: Findings) -> Figure:
    """The validation score over the steps, a panel per number of labels."""
    figure, panels = _figure(len(findings.labels))
    for panel, amount in zip(panels, findings.labels, strict=True):
        for key, line in _lines(findings):
            if (key, amount) not in findings.curves:
                continue
            table = findings.curves[key, amount]
            steps, scores = table.index.to_numpy(float), table.to_numpy().T
            panel.plot(steps, scores.mean(0), **line)
            if len(scores) > 1:
                # Within the observed range: the band of few repetitions can be far wider.
                low, high = np.clip(statistics.t_interval(scores), scores.min(), scores.max())
                panel.fill_between(steps, low, high, color=line["color"], **_BAND)
        panel.set(title=f"labels: {amount}", xlabel="step")
    panels[0].set_ylabel("validation score")
    figure.axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def write(folder: Path, study: Study, findings: Findings) -> list[Path]:
    """Writes the figures as PNG and PDF, and returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    with style.context(Path(__file__).with_suffix(".mplstyle")):
        figures = {"data_efficiency": data_efficiency(study, findings)}
        if findings.curves:
            figures["convergence"] = convergence(findings)
        for name, figure in figures.items():
            # Without the date, the same results make the same file.
            for ending, about in (("png", {}), ("pdf", {"CreationDate": None})):
                with atomic_write(folder / f"{name}.{ending}") as partial:
                    figure.savefig(partial, metadata=about)
    return [folder / f"{name}.png" for name in figures]


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.5 + 3.8 * panels, 4.2))
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))


def _lines(findings: Findings) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The line of each row: a colour per task, dashes per rank and mode.

    Without `DOUBLES`, which often have fewer repetitions: beside means over more, that of a lucky
    label subset would look like a method.
    """
    for key in findings.rows:
        method = METHODS[key.method]
        if key.method not in DOUBLES.values():
            yield (
                key,
                {
                    "color": method.colour,
                    "linestyle": _DASHES[method.rank == 2, key.mode == "frozen"],
                    "linewidth": 2.2 if key.method == SCRATCH else 1.3,
                    "label": findings.label(key),
                },
            )
