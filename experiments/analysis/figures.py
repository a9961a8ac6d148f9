"""Figures of a study: differences to scratch, scores and convergence, as PNG and PDF.

Small multiples: each method has a panel of its own, with scratch in black.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssl3d.atomic import atomic_write
from ssl3d.experiments.analysis import statistics
from ssl3d.experiments.analysis.findings import PLATEAU, Findings, Key, arm_of, in_words
from ssl3d.experiments.engine.study import DOUBLES, METHODS, Study

_SIDE = 2.5  # inches of a panel
_COLUMNS = 4


def differences(study: Study, findings: Findings) -> Figure:
    """Forest plot: the difference of each method to scratch, a panel per amount of labels."""
    shown = findings.comparisons | findings.controls
    amounts = [amount for amount in findings.labels if any(a == amount for _, a in shown)]
    keys = [key for key in findings.rows if any(key == own for own, _ in shown)]
    doubled = {f"{name}-double": name for name, _ in findings.plateau}
    names = [*map(findings.label, keys), *doubled]
    # Intervals of few labels are far wider: each amount has an axis of its own.
    figure = _figure(max(len(amounts), 1), 1, (3.4, 1.0 + 0.3 * len(names)), sharex=False)
    for axes, amount in zip(figure.axes, amounts or [""], strict=True):
        found = [shown.get((key, amount)) for key in keys]
        found += [findings.plateau.get((name, amount)) for name in doubled.values()]
        axes.axvspan(-PLATEAU, PLATEAU, color="0.9", linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        for place, (one, method) in enumerate(
            zip(found, [*(key.method for key in keys), *doubled], strict=True)
        ):
            if one is None:
                continue
            colour, control = METHODS[method].colour, METHODS[method].control
            low, high = one.interval if one.repetitions > 1 else (one.difference,) * 2
            axes.plot((low, high), (place, place), color=colour, linewidth=1.5)
            inside = "white" if control else colour
            axes.plot(one.difference, place, "o", color=colour, markerfacecolor=inside)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set(title=in_words(amount), xlabel=f"{study.columns[0].name}, difference to scratch")
    return figure


def data_efficiency(study: Study, findings: Findings) -> Figure:
    """The test score of each method over the number of labels; of one number, in one panel."""
    if len(findings.labels) == 1:
        return _scores(study, findings)
    name, labels = study.columns[0].name, findings.labels
    keys = _compared(findings) or _drawn(findings)
    figure = _figure(*_layout(len(keys)))
    _hide(figure, len(keys), _layout(len(keys))[0])
    for axes, key in zip(figure.axes, keys, strict=False):
        for own in dict.fromkeys((*_baselines(findings, key), key)):
            # A line joins amounts of labels, never the arms of a study.
            lines: dict[str, dict[int, tuple[Any, ...]]] = {}
            for i, amount in enumerate(labels):
                if one := findings.scores.get((own, amount)):
                    lines.setdefault(arm_of(amount), {})[i] = one.value, *one.interval()
            for points in lines.values():
                mean, low, high = np.array(list(points.values())).T
                _draw(axes, own, list(points), mean, low, high, marker="o")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_title(findings.label(key))
    _limit(figure.axes, findings, name)
    figure.supylabel(f"{name}, test set", fontsize="medium")
    figure.supxlabel("labelled training subjects", fontsize="medium")
    return figure


def _scores(study: Study, findings: Findings) -> Figure:
    """The scores of all repetitions with one amount of labels, and their means."""
    (amount,), name = findings.labels, study.columns[0].name
    keys = [key for key, a in findings.places if a == amount]
    figure = _figure(1, 1, (6.0, 1.2 + 0.35 * len(keys)))
    (axes,) = figure.axes
    for place, key in enumerate(keys):
        values, colour = findings.values(key, amount, name), METHODS[key.method].colour
        axes.plot(values, [place + 0.15] * len(values), "o", color=colour, alpha=0.4)
        if score := findings.scores.get((key, amount)):
            axes.plot(score.interval(), (place - 0.1,) * 2, color=colour, linewidth=1.5)
            axes.plot(score.value, place - 0.1, "D", color=colour)
    axes.set_yticks(range(len(keys)), [findings.label(key) for key in keys])
    axes.set_ylim(len(keys) - 0.5, -0.5)
    axes.set(title=in_words(amount), xlabel=f"{name}, test set")
    return figure


def convergence(findings: Findings) -> Figure:
    """The validation score over the steps: a row per number of labels, a column per method."""
    keys = [key for key in _compared(findings) if any(key == own for own, _ in findings.curves)]
    keys = keys or [key for key in _drawn(findings) if (key, findings.labels[0]) in findings.curves]
    amounts = findings.labels
    rows, columns = (len(amounts), len(keys)) if len(amounts) > 1 else _layout(len(keys))[::-1]
    figure = _figure(max(columns, 1), max(rows, 1), sharex="row")
    _hide(figure, len(keys) * len(amounts), columns=1)
    places = [(amount, key) for amount in amounts for key in keys]
    for axes, (amount, key) in zip(figure.axes, places, strict=False):
        for own in dict.fromkeys((*_baselines(findings, key), key)):
            if (own, amount) not in findings.curves:
                continue
            table = findings.curves[own, amount]
            steps, scores = table.index.to_numpy(float), table.to_numpy().T
            # Within the observed range: the band of few repetitions can be far wider.
            band = np.clip(statistics.t_interval(scores), scores.min(), scores.max())
            _draw(axes, own, steps, scores.mean(0), *band)
        axes.set_title(f"{findings.label(key)}, {in_words(amount)}")
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("validation score", fontsize="medium")
    return figure


def write(folder: Path, study: Study, findings: Findings) -> list[Path]:
    """Writes the figures as PNG and PDF, and returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    with style.context(Path(__file__).with_suffix(".mplstyle")):
        figures = {}
        if findings.comparisons or findings.controls:
            figures["differences"] = differences(study, findings)
        figures["data_efficiency"] = data_efficiency(study, findings)
        if findings.curves:
            figures["convergence"] = convergence(findings)
        for name, figure in figures.items():
            # Without the date, the same results make the same file.
            for ending, about in (("png", {}), ("pdf", {"CreationDate": None})):
                with atomic_write(folder / f"{name}.{ending}") as partial:
                    figure.savefig(partial, metadata=about)
                figure.set_layout_engine("none")  # which the first has laid out
    return [folder / f"{name}.png" for name in figures]


def _figure(
    columns: int,
    rows: int,
    size: tuple[float, float] = (_SIDE, _SIDE),
    sharex: bool | Literal["row"] = True,
) -> Figure:
    """Panels of a size in inches, with the same vertical axis."""
    figure = Figure(figsize=(1.2 + columns * size[0], 0.4 + rows * size[1]))
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, sharey=True, sharex=sharex)
    return figure


def _hide(figure: Figure, used: int, columns: int) -> None:
    """Hides the panels that a last row has too many, and labels the last in each of the columns.

    Of one column, each panel has steps of its own.
    """
    for number, axes in enumerate(figure.axes):
        axes.set_visible(number < used)
        axes.tick_params(labelbottom=number + columns >= used or columns == 1)


def _layout(panels: int) -> tuple[int, int]:
    columns = min(max(panels, 1), _COLUMNS)
    return columns, max(math.ceil(panels / columns), 1)


def _drawn(findings: Findings) -> list[Key]:
    """The rows without `DOUBLES`, which often have fewer repetitions.

    Beside means over more, that of a lucky label subset would look like a method.
    """
    return [key for key in findings.rows if key.method not in DOUBLES.values()]


def _compared(findings: Findings) -> list[Key]:
    """The rows with a panel of their own: all but the scratches."""
    return [key for key in _drawn(findings) if key.method not in DOUBLES]


def _baselines(findings: Findings, key: Key) -> Sequence[Key]:
    """The scratch that a row is compared with."""
    shown = findings.comparisons | findings.controls
    names = dict.fromkeys(found.against for (own, _), found in shown.items() if own == key)
    return [Key(name, "random") for name in names]


def _draw(axes: Axes, key: Key, at: Any, mean: Any, low: Any, high: Any, marker: str = "") -> None:
    """The line of a method, with its band where that is defined."""
    colour, dashes = METHODS[key.method].colour, "--" if key.mode == "frozen" else "-"
    axes.plot(at, mean, color=colour, linestyle=dashes, marker=marker, label=key.method)
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _limit(panels: Sequence[Axes], findings: Findings, name: str) -> None:
    """The scores set the axis: bands of few repetitions are wide."""
    values = np.array([value for place in findings.runs for value in findings.values(*place, name)])
    if np.isfinite(values).any():
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.1 * (high - low) or 0.01
        panels[0].set_ylim(low - room, high + room)
