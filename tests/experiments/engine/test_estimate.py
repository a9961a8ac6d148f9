import json
import time

import pytest

from ssl3d.errors import UserError
from ssl3d.experiments import brats, command, hippocampus_levels_splits
from ssl3d.experiments.engine import estimate, grid
from ssl3d.experiments.engine.estimate import Cost
from ssl3d.experiments.engine.grid import Job, Size
from ssl3d.experiments.engine.study import StudyData
from tests.support.small_study import done, start, tiny


def test_the_hours_are_the_sum_over_all_runs():
    """By hand: a pretraining of 100 + 10 * 36 s = 460 s, and two cells of 100 + 360 + 3 * 20 s."""
    before = Job("pretraining/a", "rpl3d", "", {"validate_every": 20}, {"steps": 36, "method": "a"})
    about = {"validate_every": 20}, {"steps": 36}, before
    cells = [Job(f"cells/{name}", "segment3d", "", *about) for name in "ab"]
    costs = {"rpl3d (a)": Cost(100, 0, 10, 2e9), "segment3d": Cost(100, 20, 10, 1e9)}
    text = estimate.table(cells, costs, 2)
    assert f"2 cells: {(460 + 2 * 520) / 3600:.1f} hours of runs; 2 at a time" in text
    (row,) = [line.split("|") for line in text.splitlines() if "rpl3d" in line]
    assert [float(cell) for cell in row[2:-1]] == [1, 10, 7.67, 2, 0.128]


def test_an_estimate_runs_a_few_steps_of_each_kind_once(call, capsys):
    assert call("--methods=scratch,rpl3d,rpl2d", "--estimate") == 0
    said = capsys.readouterr().out
    assert "12 cells" in said
    for kind in ("segment3d", "segment2d", "rpl3d (rpl3d)", "rpl2d (rpl2d)"):
        assert f"timing 6 steps of {kind}" in said
        assert f"| {kind} " in said
    first = done(call.output)
    assert all(name.startswith("probe/") for name in first)
    assert not (call.output / "results.csv").exists()
    call("--methods=scratch,rpl3d,rpl2d", "--estimate")
    assert done(call.output) == first
    call("--methods=scratch,rpl3d,rpl2d", "--estimate", "--set=finetuning.steps=8")
    assert done(call.output) == first
    call("--methods=scratch", "--estimate", "--set=encoder.width=8")
    assert sum((done(call.output) - first).values()) == 1
    capsys.readouterr()
    # What is finished needs no more time, nor does a pretraining that is.
    call("--methods=scratch,rpl3d", "--fractions=2")
    capsys.readouterr()
    call("--methods=scratch,rpl3d", "--fractions=2", "--estimate")
    assert "nothing is missing" in capsys.readouterr().out
    call("--methods=rpl3d", "--estimate")
    said = capsys.readouterr().out
    assert "2 cells" in said
    assert "rpl3d (rpl3d)" not in said


def test_a_kind_that_fails_is_left_out(call, stand_in, capsys):
    """The others are timed and kept."""
    options = "--methods=scratch,rpl3d,rpl2d", "--fractions=2", "--estimate"
    stand_in.setenv("STAND_IN_FAILS", "probe/pretraining-rpl3d")
    assert call(*options) == 0
    said = capsys.readouterr().out
    assert "not timed: no luck (see " in said
    assert "[4 of 4] timing 6 steps of segment2d" in said
    assert said.endswith("; without rpl3d (rpl3d), which could not be timed\n")
    (row,) = [line for line in said.splitlines() if line.startswith("| rpl3d (rpl3d) ")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["1", *["–"] * 4]
    stand_in.delenv("STAND_IN_FAILS")
    call(*options)
    assert "[1 of 1] timing 6 steps of rpl3d (rpl3d)" in capsys.readouterr().out


def test_frozen_runs_are_timed_frozen(call, volumes, capsys):
    call("--methods=rpl3d,untrained-frozen", "--modes=finetune,frozen", "--estimate")
    said = capsys.readouterr().out
    assert "timing 6 steps of segment3d\n" in said
    assert "timing 6 steps of segment3d, frozen\n" in said
    plan = StudyData(tiny(), volumes, volumes)
    size = Size(("untrained-frozen", "rpl3d"), ("2",), 1, ("finetune", "frozen"))
    found = estimate.kinds(grid.jobs(plan, grid.cells(size)))
    modes = {name: estimate.untrained(jobs[0]).get("transfer.mode") for name, jobs in found.items()}
    assert modes == {"segment3d": "random", "segment3d, frozen": "frozen", "rpl3d (rpl3d)": None}
    assert len(found["segment3d, frozen"]) == 2


@pytest.mark.slow
def test_a_stopped_estimate_ends_at_once_and_keeps_what_it_has(volumes, tmp_path):
    options = ["--methods=scratch,rpl3d", "--fractions=2", "--estimate"]
    process = start(tmp_path, volumes.path, *options, STAND_IN_SECONDS="3")
    while not (tmp_path / estimate.FILE).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    out, error = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "stopped; run the same command again to continue" in out
    assert error == ""
    assert len(estimate.read(tmp_path)) == 1


def test_damaged_costs_are_named(tmp_path):
    (tmp_path / estimate.FILE).write_text(json.dumps({"segment3d": {"fixed": 1}}))
    with pytest.raises(UserError, match=r"costs\.json: .*remove it to measure again"):
        estimate.read(tmp_path)


def test_an_estimate_of_gpus_needs_neither_data_nor_gpus(monkeypatch, capsys):
    """One GPU per run: the plans are of one, and eight run eight cells at a time."""
    asked = []

    def plan(command, **_):
        asked.append(command)
        text = json.dumps({"seconds": 0.02, "memory": 3e9})
        return type("Done", (), {"returncode": 0, "stdout": text, "stderr": ""})

    monkeypatch.setattr(estimate.subprocess, "run", plan)
    arguments = ["--methods=scratch,rpl3d", "--repetitions=5", "--estimate=h100x8"]
    assert command.main(brats.STUDY, arguments) == 0
    assert {"--target=h100x1"} == {one for command in asked for one in command if "target" in one}
    configs = [one for command in asked for one in command if one.startswith("--config=")]
    assert sorted(configs) == ["--config=rpl3d:ukb", "--config=segment3d:brats"]
    hours = 0.02 * (5 * 4 * 2 * 40_000 + 5 * 100_000) / 3600
    said = capsys.readouterr().out
    assert f"40 cells: {hours:.1f} hours of runs; 8 at a time: about {hours / 8:.1f} hours" in said


def test_an_estimate_of_gpus_counts_the_encoders_of_each_split(monkeypatch, capsys):
    text = json.dumps({"seconds": 0.02, "memory": 3e9})
    done = type("Done", (), {"returncode": 0, "stdout": text, "stderr": ""})
    monkeypatch.setattr(estimate.subprocess, "run", lambda *_, **__: done)
    assert command.main(hippocampus_levels_splits.STUDY, ["--estimate=h100x8"]) == 0
    said = capsys.readouterr().out
    assert "192 cells: " in said
    (row,) = [line.split("|") for line in said.splitlines() if line.startswith("| cpc2d")]
    assert row[2].strip() == "8"


@pytest.mark.parametrize("wrong", ["v5e:2x2", "h100", "8"])
def test_an_estimate_is_of_gpus_or_of_this_machine(wrong):
    with pytest.raises(UserError, match=f"--estimate={wrong}: write GPUs, e.g. h100x8"):
        command.main(brats.STUDY, [f"--estimate={wrong}"])


def test_kinds_hold_each_run_once(volumes):
    plan = StudyData(tiny(), volumes, volumes)
    size = Size(("scratch", "rpl3d", "rpl2d"), ("2", "all"), 2, ("finetune",), encoders=2)
    found = estimate.kinds(grid.jobs(plan, grid.cells(size)))
    counts = {name: len(jobs) for name, jobs in found.items()}
    assert counts == {"segment3d": 8, "segment2d": 4, "rpl3d (rpl3d)": 2, "rpl2d (rpl2d)": 2}


def test_the_planned_study_of_levels_is_what_was_asked_for():
    """Eight splits with an encoder each, four label draws, both learning rates."""
    study = hippocampus_levels_splits.STUDY
    options = command.parser(study).parse_args([])
    command.check_counts(study, options)
    size = Size(
        *(study.methods, study.labels, options.repetitions, study.modes, study.first_repetition),
        *(options.encoders, options.splits, tuple(study.arms)),
    )
    cells = grid.cells(size)
    assert len(cells) == 3 * 2 * 32
    encoders = {(cell.split, cell.encoder) for cell in cells if cell.encoder}
    assert encoders == {(number, number) for number in range(1, 9)}


def test_amounts_of_labels_with_settings_of_their_own_are_timed_apart(volumes):
    own = {"2": {"batch_size": 4}, "all": {"batch_size": 2}}
    plan = StudyData(tiny(finetuning_of=own), volumes, volumes)
    size = Size(("scratch", "rpl3d"), ("2", "all"), 2, ("finetune",))
    found = estimate.kinds(grid.jobs(plan, grid.cells(size)))
    assert {name: len(jobs) for name, jobs in found.items()} == {
        **{"rpl3d (rpl3d)": 1, "segment3d, 2": 4, "segment3d, all": 4}
    }


def test_another_number_of_workers_is_timed_anew(call):
    options = "--methods=scratch", "--fractions=2", "--estimate"
    for workers, times in (("1", 1), ("2", 2), ("1", 2)):
        call(*options, f"--workers={workers}")
        assert sum(done(call.output).values()) == times
