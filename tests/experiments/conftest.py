"""Fixtures of the studies' tests; their small study is in `small_study`."""

import sys
from pathlib import Path

import pytest

# Collections as people have them on disk, which the tests of the data make.
sys.path.append(str(Path(__file__).parents[1] / "data"))


@pytest.fixture
def study():
    from small_study import tiny

    return tiny()


@pytest.fixture
def stand_in(monkeypatch):
    """No training: every job writes a made-up result at once."""
    from small_study import use_stand_in

    use_stand_in(monkeypatch.setattr)
    return monkeypatch
