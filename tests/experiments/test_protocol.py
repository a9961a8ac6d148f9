"""The command as a whole, with a stand-in for the training (see `small_study`)."""

import base64
import dataclasses
import re
import shutil

import pandas as pd
import pytest

from ssl3d.data import pipeline, store
from ssl3d.errors import UserError
from ssl3d.experiments import command
from ssl3d.experiments.analysis import report, results_table
from tests.support.small_study import STUDIES, done, rows, tiny

CELLS = 6 * 2 * 2


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        pd.testing.assert_frame_equal(one, other, check_names=False)


def test_a_whole_study(call, drawn, capsys):
    drawn()
    assert call() == 0
    output = call.output
    found = rows(output)
    assert len(found) == CELLS
    assert set(done(output).values()) == {1}
    assert len(done(output)) == CELLS + 3
    assert len(rows(output, "pretraining.csv")) == 3
    cases = rows(output, "cases.csv")
    assert len(cases) == 12
    assert set(cases[0]) - {row["cell"] for row in found} == {"id", "subject", "score"}
    for row in found:
        for key in ("dice", "seed", "steps", "seconds", "device_seconds"):
            assert row[key]
        for key in ("train_hash", "val_hash", "test_hash", "config_hash"):
            assert re.fullmatch("[0-9a-f]{12}", row[key])
        assert bool(row["pretraining_hash"]) == row["method"].endswith("d")
        assert row["transductive"] == "False"
        assert row["code"].startswith("0.")
    said = capsys.readouterr().out
    assert "With 2 labels significantly better than scratch: rpl3d (+0.1" in said
    assert re.search(r"With all labels significantly better than scratch: .*rpl3d \(\+0\.1", said)
    for name in ("differences", "data_efficiency", "convergence"):
        assert (output / "figures" / f"{name}.png").stat().st_size > 5000
        assert (output / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_stands_for_itself(call):
    call()
    page = (call.output / "report.html").read_text()
    assert not re.search(r"(https?:)?//|<link|<script|src=\"(?!data:)", page.split("base64")[0])
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    for text in ("Verdict", "gain: +0.1", "8 train, 4 val, 2 test", "a stand-in", "untrained"):
        assert text in page
    assert set(re.findall(r"</?(\w+)", page)) >= {"table", "h1", "img"}


def test_the_report_names_the_command_and_no_folder(call, tmp_path):
    call("--methods=scratch,rpl3d", "--repetitions=2")
    for file in ("tables.md", "tables.tex", "report.html", "results.csv", "pretraining.csv"):
        text = (call.output / file).read_text()
        assert str(tmp_path) not in text
    text = (call.output / "tables.md").read_text()
    command = "python -m ssl3d.study hippocampus --data=DIR --output=DIR --methods=scratch,rpl3d"
    assert f"- to continue: {command} --repetitions=2\n" in text
    call("--methods=scratch,rpl3d", "--report-only", "--repetitions=2")
    assert f"- to continue: {command} --repetitions=2\n" in (call.output / "tables.md").read_text()


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--data=/home/me", "--splits=2"], "--data=DIR --splits=2"),
        (["--data", "/home/me", "--splits", "2"], "--data DIR --splits 2"),
        ([], ""),
    ],
)
def test_commands_are_shown_without_folders(study, typed, shown):
    command = f"python -m ssl3d.study hippocampus {shown}".strip()
    assert report.as_typed(study, typed) == command


def test_run_again_it_has_nothing_to_do(call):
    call()
    before = done(call.output)
    results = (call.output / "results.csv").read_bytes()
    assert call() == 0
    assert done(call.output) == before
    assert (call.output / "results.csv").read_bytes() == results


def test_finished_cells_are_not_run_again_where_only_the_tables_are_left(call):
    """As in a checkout of the repository, which has no folders of cells."""
    call("--methods=scratch,rpl3d")
    first = done(call.output)
    for name in ("cells", "pretraining"):
        shutil.rmtree(call.output / name)
    call("--methods=scratch,rpl3d")
    assert done(call.output) == first
    call("--methods=scratch,rotation3d")
    assert len(rows(call.output)) == 3 * 2 * 2
    assert "rpl3d" in (call.output / "tables.md").read_text()
    assert sum((done(call.output) - first).values()) == 4 + 1


def test_folders_of_runs_stay_out_of_a_repository(call):
    call("--methods=scratch")
    call("--methods=scratch")
    assert (call.output / "cells" / ".gitignore").read_text() == "*\n"
    assert not (call.output / ".gitignore").exists()


def test_other_settings_are_other_cells(call, study):
    call("--methods=scratch")
    other = tiny(finetuning=dict(study.finetuning) | {"steps": 8})
    assert call("--methods=scratch", study=other) == 0
    assert len(rows(call.output)) == 8
    # The report is of the settings as they are now.
    assert (
        "downstream steps: 8 with 2 labels, 8 with all labels\n"
        in (call.output / "tables.md").read_text()
    )


def test_rows_of_other_data_are_kept_but_not_reported(call):
    call("--methods=scratch")
    file = call.output / "results.csv"
    row = file.read_text().splitlines()[1].replace("-r1-", "-r7-")
    with file.open("a") as text:
        text.write(row.replace(",2,1,", ",99,7,") + "\n")
    file = call.output / "cases.csv"
    head, *cases = file.read_text().splitlines()
    lines = [f"{head},{row.partition(',')[0]}", *(f"{case},0.5" for case in cases)]
    file.write_text("\n".join(lines) + "\n")
    assert call("--methods=scratch") == 0
    assert len(rows(call.output)) == 5
    assert "| 99 |" not in (call.output / "tables.md").read_text()


def test_the_report_opens_with_question_data_and_days(call, study):
    call("--methods=scratch,rpl3d")
    opening = [
        f"Question: {study.question}",
        "Data: tiny 3D, 7 labelled training subjects, 2 test cases; pretrained on the same data.",
        "Run: 2026-01-31; 8 cells.",
    ]
    lines = (call.output / "tables.md").read_text().splitlines()
    assert [line for line in lines[1:8] if line] == opening


def test_a_setting_of_the_study_is_no_error(call):
    options = "--methods=scratch", "--fractions=2", "--repetitions=1"
    call(*options, "--set=finetuning.steps=6", "--set=finetuning.data.margin=0")
    assert [row["steps"] for row in rows(call.output)] == ["6"]


def test_encoders_and_splits_that_cross_are_refused(call, volumes, tmp_path):
    """Encoders of other data serve all splits: in means over splits they would not vary."""
    store.write_manifest(dataclasses.replace(volumes, path=tmp_path / "corpus"))
    options = f"--pretrain-data={tmp_path / 'corpus'}", "--repetitions=6", "--splits=2"
    message = "--encoders=3 --splits=2: all splits share these encoders: .*; give --encoders=2"
    with pytest.raises(UserError, match=message):
        call(*options, "--encoders=3")


def test_a_setting_of_the_command_line(call):
    call("--methods=scratch", "--fractions=2", "--set=finetuning.steps=8", "--repetitions=1")
    assert [row["steps"] for row in rows(call.output)] == ["8"]
    assert "--set=finetuning.steps=8" in (call.output / "tables.md").read_text()


def test_predictions_are_in_the_report_where_they_are_kept(call):
    call("--methods=scratch", "--fractions=2", "--repetitions=1")
    page = call.output / "report.html"
    assert "<h2>Predictions</h2>" not in page.read_text()
    (cell,) = (call.output / "cells").glob("scratch*")
    folder = cell / "run" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "median.png").write_bytes(b"\x89PNG of the median case")
    call("--methods=scratch", "--fractions=2", "--repetitions=1", "--report-only")
    assert "<h2>Predictions</h2>" in page.read_text()
    assert base64.b64encode(b"\x89PNG of the median case").decode() in page.read_text()


def test_narrowed(call):
    options = ["--methods=scratch,cpc3d", "--fractions=3,50%", "--repetitions=1"]
    call(*options, "--modes=frozen,finetune")
    found = {(row["method"], row["mode"], row["labels"]) for row in rows(call.output)}
    modes = [("scratch", "random"), ("cpc3d", "frozen"), ("cpc3d", "finetune")]
    assert found == {(*mode, amount) for mode in modes for amount in ("3", "50%")}
    assert "| cpc3d, frozen |" in (call.output / "tables.md").read_text()
    assert "single repetition" in (call.output / "tables.md").read_text()


def test_tables_of_a_killed_study(call):
    """It was killed before it merged its last cells: the report merges them."""
    call("--methods=scratch", "--repetitions=2")
    whole = {name: (call.output / name).read_text() for name in ("results.csv", "cases.csv")}
    for name, text in whole.items():
        (call.output / name).write_text(text.splitlines(keepends=True)[0])
    call("--methods=scratch", "--repetitions=2", "--report-only")
    assert {name: (call.output / name).read_text() for name in whole} == whole


@pytest.mark.parametrize("name", ["hippocampus", "hippocampus_slices"])
def test_another_collection_is_refused(name, volumes, tmp_path):
    arguments = [f"--data={volumes.path}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"its classes are bright, and .* Anterior, Posterior"):
        command.main(STUDIES[name], arguments)


def test_fractions_in_any_order(call):
    call("--methods=scratch", "--fractions=100%,2,50%", "--repetitions=1")
    before = done(call.output)
    assert [name.split("-")[2] for name in before] == ["2", "50pc", "all"]


def test_draws_of_two_versions_are_told(call, monkeypatch):
    said = "samples training data differently from that of scratch: rpl3d (draws in results.csv)"
    call("--methods=scratch", "--repetitions=1")
    assert said not in (call.output / "tables.md").read_text()
    monkeypatch.setattr(pipeline, "DRAW_VERSION", 4)
    call("--methods=scratch,rpl3d", "--repetitions=1")
    assert {row["draws"] for row in rows(call.output)} == {"3", "4"}
    for file in ("tables.md", "tables.tex", "report.html"):
        assert said in (call.output / file).read_text()


def test_transductive_says_so_everywhere(call):
    call("--methods=scratch,rpl3d", "--transductive")
    flags = {row["method"]: row["transductive"] for row in rows(call.output)}
    assert flags == {"scratch": "False", "rpl3d": "True"}
    for file in ("tables.md", "tables.tex", "report.html"):
        assert "Transductive: pretraining saw" in (call.output / file).read_text()
    # Of tables in LaTeX each may be taken alone.
    text = (call.output / "tables.tex").read_text()
    assert text.count("Transductive: ") == text.count("\\end{table}")


def test_several_workers_run_the_same_cells(call):
    call("--workers=3")
    assert len(rows(call.output)) == CELLS
    assert set(done(call.output).values()) == {1}
    assert "Not complete" not in (call.output / "tables.md").read_text()


def test_a_report_of_a_part_says_what_is_missing(call):
    call("--repetitions=1")
    call("--report-only")
    text = (call.output / "tables.md").read_text()
    assert f"Not complete: {CELLS - CELLS // 2} of {CELLS} cells are missing." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods=rpl3"], "the nearest is rpl3d"),
        (["--methods=supervised"], "--pretrain-data=DIR"),
        (["--fractions=9"], "9 of 7 labelled training subjects"),
        (["--fractions=few"], "write 5%, or a number"),
        (["--modes=thawed"], "choose of finetune, frozen"),
        (["--repetitions=0"], "--repetitions"),
        (["--encoders=3"], "--encoders: give a whole number from 1 to 2, the repetitions"),
        (["--splits=0"], "--splits: give a whole number from 1"),
        (["--set=steps=8"], "--set=steps=8: write SECTION.KEY=VALUE"),
        (["--set=finetuning.stepz=8", "--methods=scratch"], "stepz"),
        (["--set=finetuning.seed=7"], "--set=finetuning.seed=7: changes no run"),
        (["--set=finetuning.validate_every=50"], "validate_every=50: changes no run"),
        (["--set=finetuning.transfer.mode=frozen"], "transfer.mode=frozen: changes no run"),
        (["--set=finetuning.data.label_fraction=0.5"], "label_fraction=0.5: changes no run"),
        (["--set=pretraining.seed=9", "--set=finetuning.steps=8"], "seed=9: changes no run"),
        (["--set=finetuning_of.32.steps=5"], "--set=finetuning_of.32.steps=5: changes no run"),
        (["--set=pretraining_of.jigsaw3d.steps=3"], "jigsaw3d.steps=3: changes no run"),
        (["--variant=best"], "--variant"),
        (["--workers=0"], "--workers"),
        (["--workers=2", "--scheduler=tcp://127.0.0.1:9"], "no --scheduler"),
        (["--scheduler=tcp://127.0.0.1:9"], "tcp://127.0.0.1:9: no Dask scheduler here"),
        (["--pretrain-data=nowhere"], "no prepared data set here"),
        (["--source=nowhere"], "--source=nowhere: no such folder"),
        (["--report-only"], "no finished cell yet"),
        (["--colour=red"], "--colour"),
    ],
)
def test_wrong_options(call, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        call(*options)
    assert "\n" not in str(caught.value)


def test_data_that_are_not_there_or_are_others(call, pictures):
    with pytest.raises(UserError, match="--data: give the folder"):
        command.main(tiny(), [f"--output={call.output}"])
    with pytest.raises(UserError, match="holds 2D images, hippocampus is a study of 3D ones"):
        call(data=pictures.path)


def test_report_only(call):
    call("--methods=scratch,rpl3d")
    before = done(call.output)
    shutil.rmtree(call.output / "figures")
    (call.output / "tables.md").unlink()
    assert call("--report-only") == 0
    assert done(call.output) == before
    assert (call.output / "tables.md").exists()
    assert (call.output / "figures" / "data_efficiency.png").exists()


@pytest.mark.parametrize("name", ["phantom", "abdomen"])
def test_a_report_alone_makes_no_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"out/data: no data here, and a report alone makes none"):
        command.main(STUDIES[name], ["--output=out", "--report-only"])
    assert list(tmp_path.iterdir()) == []


def test_a_report_alone_deals_no_splits(call):
    with pytest.raises(UserError, match=r"splits/1: no data here"):
        call("--report-only", "--splits=2")
    assert not call.output.exists()


def test_default_label_counts_fit_the_data(call):
    call("--methods=scratch", study=tiny(labels=("2", "8", "all"), repetitions=1))
    assert [row["labels"] for row in rows(call.output)] == ["2", "all"]


def test_tables_that_were_written_too_late_are_mended(call, monkeypatch):
    """Between reading and writing, another process has finished its last cell."""
    call("--methods=scratch", "--repetitions=1")
    whole, read = rows(call.output), results_table.read
    now = read(call.output)
    too_early = [now._replace(results=now.results[:1])]
    monkeypatch.setattr(results_table, "read", lambda output: (too_early or [read(output)]).pop())
    results_table.update(call.output)
    assert rows(call.output) == whole
    assert not too_early


def test_tables_that_another_process_is_replacing_are_read_whole(call):
    """Its results.csv is there already, its cases.csv and curves.csv are not."""
    call("--methods=scratch", "--repetitions=1")
    whole = results_table.read(call.output)
    files = {file: (call.output / file).read_bytes() for file in ("cases.csv", "curves.csv")}
    for file in files:
        lines = (call.output / file).read_text().splitlines(keepends=True)
        (call.output / file).write_text("".join(lines[:2]))
    assert_same(results_table.read(call.output), whole)
    results_table.update(call.output)
    assert {file: (call.output / file).read_bytes() for file in files} == files


def test_cells_without_folders_need_all_tables(call):
    call("--methods=scratch", "--repetitions=1")
    shutil.rmtree(call.output / "cells")
    (call.output / "cases.csv").unlink()
    with pytest.raises(UserError, match=r"cases\.csv: has no column scratch.*results\.csv"):
        call("--report-only")


def test_the_record_reads_as_it_was_written(call, tmp_path):
    call("--repetitions=1")
    kept = results_table.read(call.output)
    results_table.write(tmp_path / "copy", kept)
    assert_same(results_table.read(tmp_path / "copy"), kept)


@pytest.mark.parametrize(("name", "study"), STUDIES.items(), ids=STUDIES)
def test_help(name, study, in_repository):
    text = command.parser(study).format_help()
    assert text.startswith(f"usage: python -m ssl3d.study {name} ")
    assert "--scheduler" in text
