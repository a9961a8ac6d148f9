"""A run that is killed again and again ends like an undisturbed one."""

import pytest

from tests.support import kill_runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    assert kill_runs.main(tmp_path / "runs", count=6) == 0
