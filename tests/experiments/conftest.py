"""Fixtures of the studies' tests."""

import pytest

from tests.support.small_study import tiny, use_stand_in


@pytest.fixture
def study():
    return tiny()


@pytest.fixture
def stand_in(monkeypatch):
    """No training: every job writes a made-up result at once."""
    use_stand_in(monkeypatch.setattr)
    return monkeypatch
