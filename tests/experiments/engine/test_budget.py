import functools
import html
import itertools
import json
import math

import pytest

from ssl3d import cluster, processes
from ssl3d.errors import UserError
from ssl3d.experiments.engine import budget, grid, runs
from ssl3d.experiments.engine.budget import Budget, Cost
from ssl3d.experiments.engine.grid import Job, Size
from ssl3d.experiments.engine.study import StudyData
from tests.support.small_study import done, rows, tiny

FULL = Size(("scratch", "untrained-frozen", "rpl3d", "rotation3d"), ("2", "8", "all"), 3, ("a",))
BRIEF = ("scratch", "rpl3d")
HERE = functools.partial(cluster.connect, "")
ROW = {"cell": "a", "pretraining": "", "training_cases": 2, "repetition": 1, "steps": 2}


def validated(steps, times):
    return {"steps": steps, "validate_every": steps // times}


def runs_of(size, steps=1000):
    """A grid's runs, and a pretraining of each method but scratch."""
    cells = [
        Job(f"cells/{i}", "segment3d", "3d", validated(steps, 8), {"steps": steps})
        for i in range(len(size.methods) * len(size.labels) * size.repetitions)
    ]
    before = [
        Job(f"pretraining/{name}", name, "", validated(steps, 5), {"steps": steps, "method": name})
        for name in size.methods
        if name.endswith("3d")
    ]
    return before + cells


def choose(seconds, cost=None, measured=None):
    """The size, scale and costs; measuring takes no time here."""
    measured = [] if measured is None else measured

    def measure(job):
        measured.append(budget.kind(job))
        return cost or Cost(10, 1, 0.1)

    tried = budget.sizes(FULL, BRIEF)
    return budget.choose(tried, runs_of, measure, lambda: seconds)


def seconds_of(size, scale, cost=None):
    cost = cost or Cost(10, 1, 0.1)
    total = 0
    for job in runs_of(size):
        cell = job.name.startswith("cells")
        total += cost.fixed + (9 if cell else 6) * cost.validation
        total += scale * 1000 * cost.step
    return total


def test_sizes_shrink_step_by_step():
    tried = budget.sizes(FULL, BRIEF)
    counts = [len(runs_of(size)) for size in tried]
    assert tried[0] == FULL
    assert counts == sorted(counts, reverse=True)
    five = budget.sizes(FULL._replace(repetitions=5), BRIEF)
    assert all(len(runs_of(b)) < len(runs_of(a)) for a, b in itertools.pairwise(five))
    assert Size(BRIEF, ("2",), 3, ("a",)) in tried
    assert tried[-1] == Size(BRIEF, ("2",), 1, ("a",))
    many = budget.sizes(Size(BRIEF, ("2",), 40, ("a",), 14), BRIEF)
    assert [size.repetitions for size in many] == [40, 20, 10, 5, 2, 1]
    assert {size.first_repetition for size in many} == {14}
    small = Size(("cpc3d",), ("all",), 1, ("a",))
    assert budget.sizes(small, BRIEF) == [small]  # nothing left to cut


def test_time_enough_changes_nothing():
    size, scale, _ = choose(1e6)
    assert (size, scale) == (FULL, 1.0)


def test_steps_go_before_cells():
    whole = seconds_of(FULL, 1)
    size, scale, _ = choose(0.9 * whole)
    assert size == FULL
    assert 0.5 <= scale < 1
    assert seconds_of(size, scale) == pytest.approx(0.85 * 0.9 * whole)


@pytest.mark.parametrize("minutes", [12, 20, 30, 60, 90])
def test_what_is_chosen_fits(minutes):
    size, scale, _ = choose(60 * minutes)
    assert seconds_of(size, scale) <= 0.85 * 60 * minutes + 1e-6
    assert 0 < scale <= 1
    larger = budget.sizes(FULL, BRIEF)[: budget.sizes(FULL, BRIEF).index(size)]
    for other in larger:  # was left for a reason
        assert seconds_of(other, 0.5) > 0.85 * 60 * minutes


def test_what_cannot_fit_is_not_measured():
    measured = []
    size, _, costs = choose(60 * 12, measured=measured)
    assert size.methods == BRIEF
    assert sorted(measured) == ["rpl3d", "segment3d"]
    assert set(costs) == {"segment3d", "rpl3d"}


def test_too_little_says_how_much_is_needed():
    with pytest.raises(UserError, match=r"smallest study takes (\d+) minutes") as caught:
        choose(30)
    needed = int(str(caught.value).split("takes ")[1].split()[0])
    size, scale, _ = choose(60 * needed)
    assert scale * 1000 >= 20
    assert size == budget.sizes(FULL, BRIEF)[-1]


def test_every_run_counts_once(volumes):
    plan = StudyData(tiny(), volumes, volumes)
    size = Size(plan.study.methods, ("2", "all"), 2, ("finetune",))
    runs = budget.all_runs(grid.jobs(plan, grid.cells(size)))
    assert len(runs) == 24 + 3
    assert len({job.name for job in runs}) == 27
    assert {budget.kind(job) for job in runs} == {
        "segment3d",
        "segment2d",
        "rpl3d",
        "rotation3d",
        "rpl2d",
    }


def test_a_longer_run_validates_more_often(volumes):
    """As often as the others in as many steps, so that their curves have the same steps."""
    plan = StudyData(tiny(finetuning_of={"2": {"steps": 12}}), volumes, volumes)
    cells = [grid.Cell(name, "random", "2", 1) for name in ("scratch", "scratch-double")]
    jobs = grid.jobs(plan, cells)
    assert [Cost(0, 1, 0).of(job) for job in jobs] == [1 + 3, 1 + 6]
    # Of 29 seconds 4 + 7 go to validations, one more before the first step of each.
    assert budget.scale_to_fit(jobs, lambda job: Cost(0, 1, 1), 29) == pytest.approx(0.5)


def test_only_what_ends_in_time_may_start():
    measured = Budget(60, FULL, FULL, 1.0, {"segment3d": Cost(5, 0, 0.1)})
    job = runs_of(FULL, steps=500)[-1]  # 55 seconds
    assert measured.latest_start(job, deadline=200) == 145


def test_what_is_too_late_is_left_out_with_what_needs_it(stand_in, tmp_path):
    """A cell that could start is left out too where its pretraining could not."""
    before = Job("pretraining/a", "rpl3d", "", {}, {})
    needs = {"late": None, "in-time": None, "after": before}
    cells = [Job(f"cells/{name}", "", "", {}, ROW, own) for name, own in needs.items()]
    latest = {"pretraining/a": 0.0, "cells/late": 0.0}
    runs.work(tmp_path, cells, HERE, lambda job: latest.get(job.name, math.inf))
    assert set(done(tmp_path)) == {"cells/in-time"}


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
        raise processes.Stopped

    long = tiny(pretraining={"steps": 3000}, finetuning={"steps": 3000})
    with stand_in.context() as patch:
        patch.setattr(budget, "probe", stopped)
        assert call("--budget=4", study=long) == 1
    assert "run the same command again to continue" in capsys.readouterr().out
    assert call("--budget=4", study=long) == 0


def test_a_budget_that_is_too_small(call):
    with pytest.raises(UserError, match=r"the smallest study takes \d+ minutes or more"):
        call("--budget=0.02")
