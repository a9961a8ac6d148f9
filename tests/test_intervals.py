import numpy as np
import pytest

from ssl3d.intervals import ratio, ratio_interval


def test_the_interval_holds_the_mean_and_narrows_with_more_subjects():
    rng = np.random.default_rng(0)

    def interval(count):
        hits = rng.binomial(8, 0.3, count).astype(float)
        low, high = ratio_interval(hits, np.full(count, 8.0), np.arange(count))
        assert low <= hits.sum() / (8 * count) <= high
        return high - low

    few, many = interval(20), interval(500)
    assert 0.05 < few < 0.35
    # The binomial's own: 2 x 1.96 x sqrt(0.3 x 0.7 / 4000) = 0.028.
    assert many == pytest.approx(0.028, rel=0.15)


def test_cases_of_one_subject_are_drawn_together():
    rng = np.random.default_rng(0)
    hits = np.repeat(rng.integers(0, 2, 20).astype(float), 8)  # all cases of a subject agree
    subjects = np.repeat(np.arange(20), 8)
    together = np.diff(ratio_interval(hits, np.ones(160), subjects))
    apart = np.diff(ratio_interval(hits, np.ones(160), np.arange(160)))
    assert together > 2 * apart


def test_the_interval_is_the_same_every_time_and_sums_are_weighted():
    sums, counts, subjects = np.array([1.0, 0, 30]), np.array([2.0, 1, 30]), np.array([5, 5, 9])
    assert ratio_interval(sums, counts, subjects) == ratio_interval(sums, counts, subjects)
    # Of two subjects with ratios of 1/3 and 1, a resample has one, the other or both.
    assert ratio_interval(sums, counts, subjects) == pytest.approx((1 / 3, 1))
    # Of one subject there is nothing else to draw.
    assert ratio_interval(sums, counts, np.zeros(3, int)) == pytest.approx((31 / 33, 31 / 33))


def test_a_ratio_of_nothing_is_undefined():
    assert ratio(np.array([3.0, 1.0]), np.array([5.0, 3.0])) == 0.5
    assert np.isnan(ratio(np.zeros(2), np.zeros(2)))
