"""Fixtures of the studies' tests."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl3d import cluster
from ssl3d.experiments import command
from ssl3d.experiments.analysis import figures
from tests.support.small_study import tiny, use_stand_in


@pytest.fixture
def study():
    return tiny()


FIGURES = {
    name: getattr(figures, name) for name in ("differences", "data_efficiency", "convergence")
}


def blank(*_):
    figure = Figure((1, 1))
    FigureCanvasAgg(figure)
    return figure


@pytest.fixture
def drawn(monkeypatch):
    """Figures that are drawn with a `stand_in` too; it leaves them blank, which takes no time."""
    return lambda: [monkeypatch.setattr(figures, name, own) for name, own in FIGURES.items()]


@pytest.fixture
def stand_in(monkeypatch):
    """No training: every job writes a made-up result at once."""
    use_stand_in(monkeypatch.setattr)
    for name in FIGURES:
        monkeypatch.setattr(figures, name, blank)
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    return monkeypatch


@pytest.fixture
def call(stand_in, volumes, study, tmp_path):
    """Runs the small study into tmp_path / "out"; the status."""

    def function(*options, study=study, data=volumes.path):
        return command.main(study, [f"--data={data}", f"--output={tmp_path / 'out'}", *options])

    function.output = tmp_path / "out"
    return function
