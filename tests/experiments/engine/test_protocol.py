"""The command as a whole, with a stand-in for the training (see `small_study`)."""

import base64
import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from experiments.analysis import report, results_table
from experiments.engine import budget, protocol, runs, worker
from experiments.hippocampus import STUDY
from ssl3d.data import pipeline
from ssl3d.errors import RunError, UserError
from tests.support.small_study import STUDIES, tiny

HERE = Path(__file__).parent
CELLS = 6 * 2 * 2


@pytest.fixture
def call(stand_in, volumes, study, tmp_path):
    """Runs the small study into tmp_path / "out"; the status."""

    def function(*options, study=study, data=volumes.path):
        return protocol.main(study, [f"--data={data}", f"--output={tmp_path / 'out'}", *options])

    function.output = tmp_path / "out"
    return function


def rows(output, file="results.csv"):
    with (output / file).open(newline="") as text:
        return list(csv.DictReader(text))


def done(output):
    """How often each job was run."""
    file = output / "done.txt"
    return Counter(file.read_text().split()) if file.exists() else Counter()


def start(output, data, *options, **environment):
    """The small study's command in a process of its own."""
    root = HERE.parents[2]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.support.small_study",
            f"--data={data}",
            f"--output={output}",
            *options,
        ],
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_whole_study(call, capsys):
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
    for name in ("data_efficiency", "convergence"):
        assert (output / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (output / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_stands_for_itself(call):
    call()
    page = (call.output / "report.html").read_text()
    assert not re.search(r"(https?:)?//|<link|<script|src=\"(?!data:)", page.split("base64")[0])
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 2
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
    command = "python -m experiments.hippocampus --data=DIR --output=DIR --methods=scratch,rpl3d"
    assert f"- to continue: {command} --repetitions=2\n" in text
    call("--methods=scratch,rpl3d", "--report-only", "--repetitions=2")
    assert f"- to continue: {command} --repetitions=2\n" in (call.output / "tables.md").read_text()


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--data=/home/me", "--budget=20"], "--data=DIR --budget=20"),
        (["--data", "/home/me", "--budget", "20"], "--data DIR --budget 20"),
        ([], ""),
    ],
)
def test_commands_are_shown_without_folders(study, typed, shown):
    command = f"python -m experiments.hippocampus {shown}".strip()
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
    assert "downstream steps: 8 with 2, 8 with all\n" in (call.output / "tables.md").read_text()


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


def test_narrowed(call):
    options = ["--methods=scratch,cpc3d", "--fractions=3,50%", "--repetitions=1"]
    call(*options, "--modes=frozen,finetune")
    found = {(row["method"], row["mode"], row["labels"]) for row in rows(call.output)}
    modes = [("scratch", "random"), ("cpc3d", "frozen"), ("cpc3d", "finetune")]
    assert found == {(*mode, amount) for mode in modes for amount in ("3", "50%")}
    assert "| cpc3d, frozen |" in (call.output / "tables.md").read_text()
    assert "single repetition" in (call.output / "tables.md").read_text()


def test_fresh_repetitions(call):
    """Under their own numbers, with a budget too, and when it is asked for again."""
    fresh = tiny(first_repetition=14, pretraining={"steps": 30}, finetuning={"steps": 30})
    narrow = ("--methods=scratch,rpl3d", "--fractions=2", "--budget=60")
    call(*narrow, study=fresh)
    call(*narrow, study=fresh)
    call("--report-only", study=fresh)
    assert {row["repetition"] for row in rows(call.output)} == {"14", "15"}
    assert set(done(call.output).values()) == {1}
    tables = (call.output / "tables.md").read_text()
    assert "over 2 repetitions" in tables
    assert "Not complete" not in tables


def test_a_budget_of_before_repetitions_had_a_first(call):
    short = tiny(pretraining={"steps": 30}, finetuning={"steps": 30})
    narrow = ("--methods=scratch,rpl3d", "--fractions=2", "--budget=60")
    call(*narrow, study=short)
    file = call.output / "plan.json"
    plan = json.loads(file.read_text())
    for size in ("full", "size"):
        assert plan[size].pop("first_repetition") == 1
    file.write_text(json.dumps(plan))
    before = done(call.output)
    assert call(*narrow, study=short) == call("--report-only", study=short) == 0
    assert done(call.output) == before


def test_tables_of_a_killed_study(call):
    """It was killed before it merged its last cells: the report merges them."""
    call("--methods=scratch", "--repetitions=2")
    whole = {name: (call.output / name).read_text() for name in ("results.csv", "cases.csv")}
    for name, text in whole.items():
        (call.output / name).write_text(text.splitlines(keepends=True)[0])
    call("--methods=scratch", "--repetitions=2", "--report-only")
    assert {name: (call.output / name).read_text() for name in whole} == whole


def test_fractions_in_any_order(call):
    call("--methods=scratch", "--fractions=100%,2,50%", "--repetitions=1")
    before = done(call.output)
    assert [name.split("-")[2] for name in before] == ["2", "50pc", "all"]


def test_draws_of_two_versions_are_told(call, monkeypatch):
    said = "samples training data differently from that of scratch: rpl3d (draws in results.csv)"
    call("--methods=scratch", "--repetitions=1")
    assert said not in (call.output / "tables.md").read_text()
    monkeypatch.setattr(pipeline, "DRAW_VERSION", 3)
    call("--methods=scratch,rpl3d", "--repetitions=1")
    assert {row["draws"] for row in rows(call.output)} == {"2", "3"}
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


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_together_are_the_whole(call, parts):
    for i in range(1, parts + 1):
        assert call(f"--part={i}/{parts}") == 0
    assert len(rows(call.output)) == CELLS
    assert set(done(call.output).values()) == {1}
    assert "Not complete" not in (call.output / "tables.md").read_text()


def test_a_part_reports_what_is_missing(call):
    call("--part=1/4")
    text = (call.output / "tables.md").read_text()
    assert f"Not complete: {CELLS - CELLS // 4} of {CELLS} cells are missing." in text


@pytest.mark.slow
@pytest.mark.parametrize("options", [([], []), (["--part=1/2"], ["--part=2/2"])])
def test_processes_share_a_folder(volumes, tmp_path, options):
    """No job twice, none left out, and each of them writes the whole report at the end."""
    together = [
        start(tmp_path, volumes.path, "--repetitions=1", *own, STAND_IN_SECONDS="0.3")
        for own in options
    ]
    said = [process.communicate(timeout=120) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    assert set(done(tmp_path).values()) == {1}
    assert len(done(tmp_path)) == CELLS // 2 + 3
    assert len(rows(tmp_path)) == CELLS // 2
    assert all("[1 of" in out for out, _ in said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_study_goes_on(volumes, tmp_path, number):
    options = ["--methods=scratch", "--fractions=2,all", "--repetitions=1"]
    process = start(tmp_path, volumes.path, *options, STAND_IN_SECONDS="1.5")
    while len(list(tmp_path.glob(f"cells/*/{worker.JOB}"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGTERM:
        assert "run the same command again to go on" in out
        assert len(rows(tmp_path)) == 1
    again = start(tmp_path, volumes.path, *options)
    out, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert len(rows(tmp_path)) == 2


@pytest.mark.slow
def test_a_signal_while_others_are_waited_for(volumes, tmp_path):
    options = ["--methods=scratch", "--fractions=2", "--repetitions=1"]
    busy = start(tmp_path, volumes.path, *options, STAND_IN_SECONDS="60")
    while not list(tmp_path.glob(f"cells/*/{worker.JOB}")):
        assert busy.poll() is None, busy.communicate()
        time.sleep(0.05)
    waiting = start(tmp_path, volumes.path, *options)
    while "waiting for 1" not in waiting.stdout.readline():
        assert waiting.poll() is None, waiting.communicate()
    waiting.send_signal(signal.SIGTERM)
    out, _ = waiting.communicate(timeout=20)
    assert waiting.returncode != 0
    assert "run the same command again to go on" in out
    assert busy.poll() is None
    busy.terminate()
    busy.communicate(timeout=60)


def test_a_run_that_fails_stops_nothing_else(call, stand_in):
    stand_in.setenv("STAND_IN_FAILS", "rpl3d-finetune-2-r1")
    with pytest.raises(RunError, match=r"1 of the runs failed.*rpl3d-finetune-2-r1.*no luck"):
        call()
    assert len(rows(call.output)) == CELLS - 1
    assert "Not complete: 1 of" in (call.output / "report.html").read_text()
    stand_in.delenv("STAND_IN_FAILS")
    assert call() == 0
    assert len(rows(call.output)) == CELLS


def test_a_pretraining_that_fails_takes_its_cells_along(call, stand_in):
    stand_in.setenv("STAND_IN_FAILS", "pretraining/rpl3d")
    with pytest.raises(RunError, match="5 of the runs failed"):
        call()
    assert len(rows(call.output)) == CELLS - 4


def test_a_budget(call):
    """A stand-in's step is 10 ms, so that a minute does not hold the grid with all its steps."""
    long = tiny(pretraining={"steps": 3000}, finetuning={"steps": 3000})
    assert call("--budget=4", study=long) == 0
    plan = json.loads((call.output / "plan.json").read_text())
    assert 0 < plan["scale"] < 1
    found = rows(call.output)
    assert {int(row["steps"]) for row in found if row["method"] == "scratch"} == {
        round(3000 * plan["scale"])
    }
    for file in ("tables.md", "report.html"):
        text = html.unescape((call.output / file).read_text())
        assert f"cut down to 4 minutes: {len(found)} of 24 cells" in text
        assert f"each run of {plan['scale']:.1%} of the full study's steps" in text
    before = done(call.output)
    assert call("--budget=4", study=long) == 0
    assert done(call.output) == before
    with pytest.raises(UserError, match=r"budget_minutes=4\.0, not 5\.0"):
        call("--budget=5", study=long)
    with pytest.raises(UserError, match="give the same --budget"):
        call(study=long)
    assert call("--report-only", study=long) == 0


def test_a_signal_while_a_budget_is_measured(call, stand_in, capsys):
    def stopped(*_):
        raise runs.Stopped

    long = tiny(pretraining={"steps": 3000}, finetuning={"steps": 3000})
    with stand_in.context() as patch:
        patch.setattr(budget, "probe", stopped)
        assert call("--budget=4", study=long) == 1
    assert "run the same command again to go on" in capsys.readouterr().out
    assert call("--budget=4", study=long) == 0


def test_a_budget_that_is_too_small(call):
    with pytest.raises(UserError, match=r"the smallest study takes \d+ minutes or more"):
        call("--budget=0.02")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods=rpl3"], "the nearest is rpl3d"),
        (["--methods=supervised"], "--pretrain-data=DIR"),
        (["--fractions=9"], "9 of 7 labelled training subjects"),
        (["--fractions=few"], "write 5%, or a number"),
        (["--modes=thawed"], "choose of finetune, frozen"),
        (["--repetitions=0"], "--repetitions"),
        (["--budget=soon"], "--budget"),
        (["--part=3/2"], "--part"),
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
        protocol.main(tiny(), [f"--output={call.output}"])
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


def test_default_label_counts_fit_the_data(call):
    call("--methods=scratch", study=tiny(labels=STUDY.labels, repetitions=1))
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
    for file in ("cases.csv", "curves.csv"):
        lines = (call.output / file).read_text().splitlines(keepends=True)
        (call.output / file).write_text("".join(lines[:2]))
    assert results_table.read(call.output) == whole
    results_table.update(call.output)
    assert rows(call.output, "cases.csv") == whole.cases
    assert rows(call.output, "curves.csv") == whole.curves


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
    assert results_table.read(tmp_path / "copy") == kept


@pytest.mark.parametrize(("name", "study"), STUDIES.items(), ids=STUDIES)
def test_help(name, study, in_repository):
    text = protocol.parser(study).format_help()
    assert f"python -m experiments.{name}" in text
    assert "--part" in text
