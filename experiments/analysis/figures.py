"""Figures of a study, as PNG and PDF: data efficiency and convergence, with confidence bands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.analysis import statistics
from experiments.analysis.findings import Findings, Key
from experiments.engine.study import DOUBLES, METHODS, SCRATCH, Study
from ssl3d.atomic import atomic_write

# Okabe and Ito's colours, which the colour-blind can tell apart; one for each task of either rank.
_COLOURS = {
    "cpc": "#0072B2",
    "exemplar": "#E69F00",
    "jigsaw": "#009E73",
    "rotation": "#CC79A7",
    "rpl": "#D55E00",
}
_OTHERS = {
    "supervised": "#56B4E9",
    "scratch-long": "#777777",
    "untrained-frozen": "#BBBBBB",
}
# In 2D or not, frozen or not.
_LINES = {(False, False): "-", (True, False): "--", (False, True): ":", (True, True): "-."}
_BAND = 0.12  # opacity


def data_efficiency(study: Study, findings: Findings) -> Figure:
    """The test score over the number of labels, with the 95 % intervals as bands."""
    figure, axes = _figure(1)
    places = np.arange(len(findings.labels), dtype=float)
    lines = list(_styles(findings))
    for number, (key, style) in enumerate(lines):
        amounts = [a for a in findings.labels if (key, a) in findings.entries]
        entries = [findings.entries[key, amount] for amount in amounts]
        at = places[[findings.labels.index(amount) for amount in amounts]]
        if len(places) == 1:
            at = at + number - (len(lines) - 1) / 2
        axes[0].plot(at, [entry.mean for entry in entries], **style)
        low, high = [entry.low for entry in entries], [entry.high for entry in entries]
        if len(places) == 1:  # a band has no width there: bars side by side
            axes[0].vlines(at, low, high, color=style["color"], linestyle=style["linestyle"])
        else:
            axes[0].fill_between(at, low, high, color=style["color"], alpha=_BAND, linewidth=0)
    # Bands of few repetitions are wide: the scores choose the axis.
    values = np.array([value for entry in findings.entries.values() for value in entry.values])
    if np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.1 * (high - low) or 0.01
        axes[0].set_ylim(low - room, high + room)
    axes[0].set_xticks(places, findings.labels)
    axes[0].set_xlabel("labelled training subjects")
    axes[0].set_ylabel(f"{study.columns[0].name}, test set")
    return _finish(figure, axes[0])


def convergence(findings: Findings) -> Figure:
    """The validation score over the steps, a panel for each number of labels."""
    figure, axes = _figure(len(findings.labels))
    for panel, amount in zip(axes, findings.labels, strict=True):
        for key, style in _styles(findings):
            if (key, amount) not in findings.curves:
                continue
            steps, scores = findings.curves[key, amount]
            panel.plot(steps, scores.mean(0), **style | {"marker": None})
            if len(scores) > 1:
                # Of few repetitions it may be endless, and no score was ever there.
                observed = scores.min(), scores.max()
                low, high = np.clip(statistics.t_interval(scores), *observed)
                panel.fill_between(steps, low, high, color=style["color"], alpha=_BAND, linewidth=0)
        panel.set_title(f"labels: {amount}", fontsize="medium")
        panel.set_xlabel("step")
    axes[0].set_ylabel("validation score")
    return _finish(figure, axes[-1])


def write(folder: Path, study: Study, findings: Findings) -> list[Path]:
    """Writes both as PNG and PDF, and returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"data_efficiency": data_efficiency(study, findings)}
    if findings.curves:
        drawn["convergence"] = convergence(findings)
    for name, figure in drawn.items():
        for ending in ("png", "pdf"):
            # Without the date, the same results make the same file.
            about = {"CreationDate": None} if ending == "pdf" else {}
            with atomic_write(folder / f"{name}.{ending}") as partial:
                figure.savefig(partial, dpi=130, metadata=about)
    return [folder / f"{name}.png" for name in drawn]


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.5 + 3.8 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))


def _finish(figure: Figure, last: Axes) -> Figure:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    last.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize="small",
        frameon=False,
        handlelength=4,  # or dashes cannot be told from dots
    )
    return figure


def _styles(findings: Findings) -> Iterator[tuple[Key, dict[str, object]]]:
    """Each row with its line: a colour per task, a dash per rank and mode.

    Not `DOUBLES`, which seldom have as many repetitions: beside means of more, that of a
    lucky label subset would look like a method.
    """
    for key in findings.rows:
        if key.method in DOUBLES.values():
            continue
        task = key.method[:-2]
        colour = _COLOURS.get(task, _OTHERS.get(key.method, "black"))
        line = _LINES[METHODS[key.method].rank == 2, key.mode == "frozen"]
        width = 2.2 if key.method == SCRATCH else 1.3
        yield (
            key,
            {
                "color": colour,
                "linestyle": line,
                "linewidth": width,
                "marker": "o",
                "markersize": 3,
                "label": findings.label(key),
            },
        )
