"""The stored results: small, and one page whose numbers come from them."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from ssl3d.errors import UserError
from ssl3d.experiments import findings, hippocampus_splits
from ssl3d.experiments.analysis import page as findings_page
from ssl3d.experiments.analysis import results_table
from tests.support.hand_made_study import record_of, result

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of the stored results and of a planned study, and one where cells are missing."""
    folder = tmp_path_factory.mktemp("results") / "results"
    shutil.copytree(RESULTS, folder)
    (folder / "README.md").unlink()
    small = dataclasses.replace(
        hippocampus_splits.STUDY,
        methods=("scratch", "scratch-double", "rpl3d"),
        labels=("all",),
        first_repetition=1,
    )
    # A trial of one repetition, on the split of the data, is none of the planned cells.
    trial = {"cell": "trial", "split": "0", "arm": "", "encoder": "0"}
    rows = [result("scratch", "all", 1, 0.1, **trial)]
    for n in range(1, 9):
        about = {"split": str(n), "finished": f"2026-12-0{n}", "arm": "", "encoder": "0"}
        rows.append(result("scratch", "all", n, 0.7 + n / 500, **about))
        rows.append(result("scratch-double", "all", n, 0.7 + n / 500, 12, **about))
        own = about | {"mode": "finetune", "pretraining": f"rpl3d-e{n}", "encoder": str(n)}
        rows.append(result("rpl3d", "all", n, 0.73 + n / 500 + n / 1000, **own))
    results_table.write(folder / "hippocampus-splits", record_of(rows))
    pages = []
    with pytest.MonkeyPatch.context() as patch:
        for repetitions in (8, 9):
            planned = dataclasses.replace(small, repetitions=repetitions)
            patch.setattr(findings, "PLANNED", (*findings.PLANNED[:-1], planned))
            assert findings.main([f"--results={folder}"]) == 0
            pages.append((folder / "README.md").read_text())
    return pages


@pytest.fixture(scope="module")
def page(pages):
    """With the planned study as a whole."""
    return pages[0]


def test_the_page_is_what_the_command_renders(page):
    """But for the section of the planned study."""
    before, after = page.index("## Hippocampus: MR"), page.index("## Studies of one encoder")
    assert page[:before] + page[after:] == (RESULTS / "README.md").read_text()


def test_a_planned_study_has_a_section_once_it_is_stored(page):
    assert "24 cells, 2026-12-01 to 2026-12-08; planned before the first." in page
    row = "| all | `rpl3d` | `scratch` | +0.034 [+0.032, +0.037] | "
    assert row + "8 repetitions, 8 splits, 8 encoders | gain |" in page
    assert "| all | `rpl3d` | `scratch-double` | +0.034" in page
    assert "| 8 repetitions | at its plateau |" in page
    command = "python -m experiments.hippocampus_splits --data=data/hippocampus --output="
    assert f"{command}results/hippocampus-splits\n" in page


def test_there_is_no_verdict_before_all_planned_cells(pages):
    assert "24 of 27 cells so far, 2026-12-01 to 2026-12-08; planned before the first." in pages[1]
    verdict = "no verdict yet, 3 of 27 cells are missing |"
    assert "| all | `rpl3d` | `scratch` | +0.034 [+0.032, +0.037] | " in pages[1]
    section = pages[1][pages[1].index("## Hippocampus: MR") : pages[1].index("## Studies of one")]
    rows = [line for line in section.splitlines() if line.startswith("| all")]
    assert rows
    assert all(row.endswith(verdict) for row in rows)


def test_no_stored_scratch_is_called_at_its_plateau_by_its_mean():
    """+0.005 [+0.003, +0.007] was."""
    page = (RESULTS / "README.md").read_text()
    assert "| `scratch2d` | +0.005 [+0.003, +0.007] | 40 | not at its plateau |" in page
    assert "| at its plateau |" not in page


def test_the_page_is_short_and_the_results_are_small():
    assert len((RESULTS / "README.md").read_text().splitlines()) <= 150
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2e6
    # Reports are made again with --report-only.
    tables = {"results.csv", "pretraining.csv", "cases.csv", "curves.csv"}
    for folder in RESULTS.glob("*/"):
        names = {file.name.removesuffix(".gz") for file in folder.iterdir()}
        assert names - {"keys.json"} == tables


def test_the_page_has_the_command_of_every_stored_study():
    page = (RESULTS / "README.md").read_text()
    for study in findings.STUDIES:
        assert f"python -m experiments.{study.name} " in page
    for folder in RESULTS.glob("*/"):
        assert f"--output=results/{folder.name}" in page or f"`{folder.name}`" in page


def test_missing_tables_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"hippocampus: no results\.csv; restore the stored study"):
        findings.main([f"--results={tmp_path}"])


def test_two_rows_of_one_planned_cell_are_an_error(tmp_path):
    """As after the labels were corrected: nothing tells which of them counts."""
    folder = tmp_path / "hippocampus-splits"
    about = {"split": "1", "encoder": "0", "arm": ""}
    rows = [result("scratch", "all", 101, 0.7, **about)]
    rows.append(rows[0] | {"cell": "of the corrected labels"})
    results_table.write(folder, record_of(rows))
    study = dataclasses.replace(hippocampus_splits.STUDY, labels=("all",))
    message = (
        r"hippocampus-splits/results\.csv: scratch-all-101 and of the corrected labels are of one"
    )
    with pytest.raises(UserError, match=message):
        findings_page.Stored(folder, study, findings_page.planned_cells(study))
