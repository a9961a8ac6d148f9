"""The stored results: small, and one page whose numbers come from them."""

import shutil
from pathlib import Path

import pytest

from ssl3d.errors import UserError
from ssl3d.experiments import findings

RESULTS = Path(__file__).parents[2] / "results"


def test_the_page_is_what_the_command_renders(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    page = tmp_path / "results" / "README.md"
    page.unlink()
    assert findings.main([f"--results={tmp_path / 'results'}"]) == 0
    assert page.read_text() == (RESULTS / "README.md").read_text()


def test_the_page_is_short_and_the_results_are_small():
    assert len((RESULTS / "README.md").read_text().splitlines()) <= 150
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2e6
    # Reports are made again with --report-only.
    tables = {"results.csv", "pretraining.csv", "cases.csv", "curves.csv"}
    for folder in RESULTS.iterdir():
        assert folder.name == "README.md" or {file.name for file in folder.iterdir()} == tables


def test_the_page_has_the_command_of_every_stored_study():
    page = (RESULTS / "README.md").read_text()
    for study in findings.STUDIES:
        assert f"python -m experiments.{study.name} " in page
    for folder in RESULTS.glob("*/"):
        assert f"--output=results/{folder.name}" in page or f"`{folder.name}`" in page


def test_missing_tables_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"hippocampus: no results\.csv; restore the stored study"):
        findings.render(tmp_path)
