import itertools

import pytest

from experiments.engine import budget, grid
from experiments.engine.budget import Cost, Size
from experiments.engine.grid import Job
from experiments.engine.study_data import Plan
from ssl3d.errors import UserError
from tests.support.small_study import tiny

FULL = Size(("scratch", "untrained-frozen", "rpl3d", "rotation3d"), ("2", "8", "all"), 3, ("a",))
BRIEF = ("scratch", "rpl3d")


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
    assert sorted(measured) == ["3d", "rpl3d"]
    assert set(costs) == {"3d", "rpl3d"}


def test_too_little_says_how_much_is_needed():
    with pytest.raises(UserError, match=r"smallest study takes (\d+) minutes") as caught:
        choose(30)
    needed = int(str(caught.value).split("takes ")[1].split()[0])
    size, scale, _ = choose(60 * needed)
    assert scale * 1000 >= 20
    assert size == budget.sizes(FULL, BRIEF)[-1]


def test_every_run_counts_once(volumes):
    plan = Plan(tiny(), volumes, volumes)
    size = Size(plan.study.methods, ("2", "all"), 2, ("finetune",))
    runs = budget.all_runs(grid.jobs(plan, grid.cells(*size)))
    assert len(runs) == 24 + 3
    assert len({job.name for job in runs}) == 27
    assert {budget.kind(job) for job in runs} == {
        "hippocampus",
        "rpl3d",
        "rotation3d",
        "rpl2d",
    }


def test_a_longer_run_validates_more_often(volumes):
    """As often as the others in as many steps, so that their curves have the same steps."""
    plan = Plan(tiny(finetuning_of={"2": {"steps": 12}}), volumes, volumes)
    cells = [grid.Cell(name, "random", "2", 1) for name in ("scratch", "scratch-double")]
    jobs = grid.jobs(plan, cells)
    assert [budget._validations(job) for job in jobs] == [3, 6]
    # Of 29 seconds 4 + 7 go to validations, one more before the first step of each.
    assert budget.scale_to_fit(jobs, lambda job: Cost(0, 1, 1), 29) == pytest.approx(0.5)


def test_the_clock_lets_only_start_what_ends(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    document = {"seconds": {"3d": {"fixed": 5, "validation": 0, "step": 0.1}}}
    may_start = budget.clock(document, deadline=200)
    job = runs_of(FULL, steps=500)[-1]  # 55 seconds
    assert may_start(job)
    now[0] = 144
    assert may_start(job)
    now[0] = 146
    assert not may_start(job)
