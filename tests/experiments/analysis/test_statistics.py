import math

import numpy as np
import pytest
import scipy.stats as scipy_stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from ssl3d.experiments.analysis import statistics
from ssl3d.experiments.analysis.statistics import Comparison, Estimate, Pair


def scores(values):
    return [statistics.mean_score(row) for row in values]


def subjects(count):
    return [f"s{i}" for i in range(count)]


def test_holm_by_hand():
    corrected, levels = statistics.holm([0.01, 0.04, 0.03, 0.005])
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, never less than the one before.
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # .03 is not below .05 / 2: that is where the procedure ends, for .04 too.
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert statistics.holm([]) == ([], [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_no_correction_and_bonferroni(values):
    corrected, levels = statistics.holm(values)
    # The interval of the level excludes zero where, and only where, the verdict is not "no gain".
    for p, q, level in zip(values, corrected, levels, strict=True):
        assert (q <= statistics.ALPHA) == (p <= level) or abs(p - level) < 1e-12
    for p, q in zip(values, corrected, strict=True):
        assert p <= q <= min(1.0, len(values) * p) + 1e-12 or q == max(corrected)
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_the_error_of_one_repetition_is_the_textbook_one():
    values = np.random.default_rng(0).normal(0.01, 0.1, 200)
    found = statistics.estimate(scores(values[None]), None, subjects(200))
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(200), rel=0.03)
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    expected = scipy_stats.t.interval(0.95, 199, values.mean(), values.std(ddof=1) / 200**0.5)
    assert found.interval() == pytest.approx(expected, abs=1e-3)


def test_repetitions_that_alone_differ_make_the_paired_t_test():
    random = np.random.default_rng(1)
    cases = random.normal(0, 0.1, 40)  # how hard each case is, for either method
    method, scratch = (random.normal(0.7, 0.02, (5, 1)) + cases for _ in range(2))
    found = statistics.estimate(scores(method), scores(scratch), subjects(40))
    assert found.freedom == pytest.approx(4, rel=1e-3)
    assert found.p == pytest.approx(scipy_stats.ttest_rel(method[:, 0], scratch[:, 0]).pvalue, 1e-3)


def test_repetitions_and_cases_vary_together():
    random = np.random.default_rng(2)
    found, truth = [], []
    for _ in range(300):
        # Both levels new each time, as another study would have them: sd .02 and .05.
        values = random.normal(0.7, 0.02, (10, 1)) + random.normal(0, 0.05, 40)
        estimate = statistics.estimate(scores(values), None, subjects(40), 300)
        found.append(estimate.error**2)
        truth.append(estimate.value)
    assert np.mean(found) == pytest.approx(0.02**2 / 10 + 0.05**2 / 40, rel=0.06)
    assert np.std(truth) == pytest.approx(np.mean(found) ** 0.5, rel=0.1)


def test_pairing_takes_out_what_cases_share():
    random = np.random.default_rng(2)
    hard = random.normal(0, 0.2, 50)  # how hard the cases are, for any method
    scratch = 0.6 + hard + random.normal(0, 0.001, (3, 50))
    found = statistics.estimate(scores(scratch + 0.01), scores(scratch), subjects(50))
    assert found.interval() == pytest.approx((0.01, 0.01), abs=1e-9)


def test_subjects_are_drawn_whole():
    values = np.repeat(np.random.default_rng(3).normal(0, 1, 40), 5)  # five cases of each, alike
    names = np.repeat(subjects(40), 5)
    together = statistics.estimate(scores(values[None]), None, names)
    apart = statistics.estimate(scores(values[None]), None, subjects(200))
    assert together.error == pytest.approx(apart.error * math.sqrt(5), rel=0.05)
    assert (together.freedom, apart.freedom) == pytest.approx((39, 199))


def test_no_difference_at_all_is_none():
    values = np.random.default_rng(8).normal(0.7, 0.1, (3, 20))
    found = statistics.estimate(scores(values), scores(values), subjects(20))
    assert (found.value, found.p, found.interval()) == (0, 1, (0, 0))


def test_nothing_is_said_of_one_case_in_one_repetition():
    assert statistics.estimate(scores([[0.7]]), scores([[0.6]]), subjects(1)) is None


def test_nothing_is_said_of_undefined_scores():
    values = np.array([[0.7, 0.6], [np.nan, np.nan]])
    assert statistics.estimate(scores(values), None, subjects(2)) is None


def test_undefined_cases_count_for_nothing():
    score = statistics.mean_score(np.array([0.2, np.nan, 0.6]))
    np.testing.assert_allclose(score(np.array([[1.0, 7, 1], [3, 0, 1]])), [0.4, 0.3])
    assert np.isnan(score(np.array([[0.0, 3, 0]]))).all()


def test_kappa_of_weights_is_that_of_repeated_cases():
    random = np.random.default_rng(4)
    grades, predicted = random.integers(0, 5, 60), random.integers(0, 5, 60)
    weights = random.integers(0, 3, (2, 60))
    found = statistics.kappa_score(grades, predicted, 5)(weights.astype(float))
    for value, weight in zip(found, weights, strict=True):
        wanted = cohen_kappa_score(
            np.repeat(grades, weight),
            np.repeat(predicted, weight),
            weights="quadratic",
            labels=range(5),
        )
        assert value == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("repetitions", "of_repetitions", "fewest", "most"),
    # Of 500 at the level of 5 %: 25. Few repetitions that differ much: 7 to 10 %, as the docs say.
    [(1, 0.0, 15, 36), (3, 0.0, 2, 25), (3, 0.012, 20, 50), (10, 0.012, 14, 36)],
)
def test_nothing_is_found_where_nothing_is(repetitions, of_repetitions, fewest, most):
    random, hits = np.random.default_rng(5), 0
    for _ in range(500):
        shape = repetitions, 32
        difference = random.normal(0, of_repetitions, (repetitions, 1))
        difference = difference + random.normal(0, 0.02, shape)
        scratch = random.normal(0.7, 0.05, shape)
        found = statistics.estimate(
            scores(scratch + difference), scores(scratch), subjects(32), 300
        )
        hits += found.p <= 0.05
    assert fewest <= hits <= most


def coverage(simulate, units=None, studies=400):
    """The share of simulated studies whose 95 % interval holds the true difference, zero."""
    random, held = np.random.default_rng(9), 0
    for _ in range(studies):
        difference = simulate(random)  # [R, M], NaN where another split tests the subject
        scratch = np.where(np.isnan(difference), np.nan, 0.7)
        names = subjects(difference.shape[1])
        found = statistics.estimate(
            scores(scratch + difference), scores(scratch), names, 100, units=units
        )
        low, high = found.interval()
        held += low <= 0 <= high
    return held / studies


ENCODERS = np.repeat(range(5), 2)


def of_encoders(random, encoders=ENCODERS, repetitions=10):
    """Encoders vary (sd .02) more than label subsets (.01) and single cases (.02)."""
    found = random.normal(0, 0.02, encoders.max() + 1)[encoders][:, None]
    found = found + random.normal(0, 0.01, (repetitions, 1))
    return found + random.normal(0, 0.02, (repetitions, 32))


def test_intervals_hold_the_variance_of_encoders():
    assert 0.92 <= coverage(of_encoders, ENCODERS) <= 0.98
    # With one encoder in all repetitions, or each repetition on its own, they do not.
    one = np.zeros(10, int)
    assert coverage(lambda random: of_encoders(random, one)) < 0.6
    assert coverage(of_encoders) < 0.91


def test_intervals_hold_the_variance_of_splits():
    """Eight splits of 100 subjects test 25 each: what they share ties them."""
    units = np.repeat(range(8), 2)

    def simulate(random):
        people, split = random.normal(0, 0.08, 100), random.normal(0, 0.01, 8)
        found = np.full((16, 100), np.nan)
        for number in range(8):
            tested = random.permutation(100)[:25]
            for row in (2 * number, 2 * number + 1):
                noise = random.normal(0, 0.01) + random.normal(0, 0.01, 25)
                found[row, tested] = people[tested] + split[number] + noise
        return found

    assert 0.92 <= coverage(simulate, units) <= 0.99


def test_repetitions_of_a_unit_are_one_replication():
    """The t test of the means of the units, where subjects are alike."""
    random = np.random.default_rng(10)
    difference, units = random.normal(0.01, 0.02, (6, 1)), ["a", "a", "b", "b", "c", "c"]
    found = statistics.estimate(
        scores(difference + np.zeros(20)), scores(np.zeros((6, 20))), subjects(20), units=units
    )
    wanted = scipy_stats.ttest_1samp(difference.reshape(3, 2).mean(1), 0)
    assert (found.p, found.freedom) == (pytest.approx(wanted.pvalue), pytest.approx(2))


@pytest.mark.parametrize(
    ("value", "error", "within"), [(0.0, 0.001, True), (0.005, 0.001, False), (0.0, 0.01, False)]
)
def test_a_margin_holds_the_whole_interval(value, error, within):
    found = Comparison(Estimate(value, error, 40), 0.5, 0.05, 40)
    assert found.within(0.005) == within
    assert not found._replace(repetitions=1).within(0.005)


def test_what_is_pending_has_no_verdict():
    found = Comparison(Estimate(0.1, 0.001, 40), 0.001, 0.05, 40, pending="too short to judge")
    assert (found.shown(), found.word) == (0, "too short to judge")
    assert found.verdict().startswith("too short to judge: +0.100 [")


def test_kappa_of_the_subjects_that_a_split_tests():
    grades, predicted = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    score = statistics.kappa_score(grades, predicted, 3, np.array([0, 0, 3, 3]), 5)
    alone = statistics.kappa_score(grades, predicted, 3)
    np.testing.assert_allclose(score(np.ones((1, 5))), alone(np.ones((1, 4))))


def test_compare_finds_what_is_there_and_nothing_else():
    random = np.random.default_rng(6)
    scratch = random.normal(0.7, 0.05, (3, 60))
    noise = random.normal(0, 0.02, (3, 3, 60))
    methods = {
        "better": Pair("scratch", scores(scratch + 0.05 + noise[0]), scores(scratch)),
        "same": Pair("scratch", scores(scratch + noise[1] - noise[1].mean()), scores(scratch)),
        "worse": Pair("scratch", scores(scratch - 0.05 + noise[2]), scores(scratch)),
    }
    found = statistics.compare(methods, subjects(60), 4000)
    assert [found[name].shown() for name in ("better", "same", "worse")] == [1, 0, -1]
    assert found["better"].verdict().startswith("gain: +0.0")
    assert found["worse"].verdict().startswith("loss: -0.0")
    assert found["same"].verdict().startswith("no gain shown: ")
    better = found["better"]
    (low, high), (low_holm, high_holm) = better.estimate.interval(), better.interval
    assert low_holm <= low < better.difference < high <= high_holm
    assert low_holm > 0


def test_a_single_repetition_shows_nothing():
    scratch = np.random.default_rng(7).normal(0.7, 0.05, (1, 60))
    found = statistics.compare(
        {"better": Pair("scratch", scores(scratch + 0.2), scores(scratch))}, subjects(60), 500
    )
    assert found["better"].shown() == 0
    assert "a single repetition" in found["better"].verdict()


def test_steps_to_reach():
    curve = [(0, 0.1), (100, 0.5), (200, 0.45), (300, 0.6)]
    assert statistics.steps_to_reach(curve, 0.5) == 100
    assert statistics.steps_to_reach(curve, 0.55) == 300
    assert statistics.steps_to_reach(curve, 0.7) == math.inf


def test_t_interval():
    low, high = statistics.t_interval(np.array([[1.0], [2.0], [3.0]]))
    assert (low[0], high[0]) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert np.isnan(statistics.t_interval(np.array([[1.0]]))[0]).all()
