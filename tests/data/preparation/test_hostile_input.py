"""Files made to crash, hang or fill the memory: one line each, and the others are prepared."""

from __future__ import annotations

import pytest

from ssl3d.data.preparation.workers import in_parallel
from ssl3d.errors import UserError
from tests.support import fuzz
from tests.support import source_files as files
from tests.support.dying import die_for
from tests.support.hostile_files import HOSTILE
from tests.support.source_files import run_prepare as run


@pytest.mark.timeout(120)
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_a_hostile_file_is_left_out_alone(hostile, tmp_path, capsys):
    source = files.WRITERS[hostile.layout](tmp_path / "source")
    hostile.write(source)
    with fuzz.limited_memory():
        dataset = run(hostile.layout, source, tmp_path / "out", "--on-error=skip")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1
    for word in hostile.words:
        assert word in lines[0]
    valid = {"folder": 4, "dicom": 2, "images": 5}
    assert len(dataset.cases) == valid[hostile.layout]


def test_a_worker_that_dies_fails_its_own_case(tmp_path):
    """As the kernel kills one that takes too much memory."""
    calls = [(tmp_path / f"{name}.nii",) for name in ("a", "kill", "b", "c")]
    found = dict(in_parallel(die_for, calls, 2, "dying"))
    assert isinstance(found[1], UserError)
    assert "kill.nii: the process at work on it was killed" in str(found[1])
    assert [found[index] for index in (0, 2, 3)] == ["a", "b", "c"]
