"""Fixtures of the studies' tests."""

import pytest

from ssl3d import cluster
from ssl3d.experiments import protocol
from tests.support.small_study import tiny, use_stand_in


@pytest.fixture
def study():
    return tiny()


@pytest.fixture
def stand_in(monkeypatch):
    """No training: every job writes a made-up result at once."""
    use_stand_in(monkeypatch.setattr)
    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    return monkeypatch


@pytest.fixture
def call(stand_in, volumes, study, tmp_path):
    """Runs the small study into tmp_path / "out"; the status."""

    def function(*options, study=study, data=volumes.path):
        return protocol.main(study, [f"--data={data}", f"--output={tmp_path / 'out'}", *options])

    function.output = tmp_path / "out"
    return function
