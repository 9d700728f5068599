"""Intervals and the paired test equal scipy's, and say nothing where there is nothing to say."""

import math
import random

import pytest
from scipy import stats

from mim.ops.intervals import Estimate, estimate, paired

ACCURACIES = [0.9722, 0.9694, 0.9778]
SAMPLES = {
    "three seeds": ACCURACIES,
    "two seeds": [0.81, 0.79],
    "twenty of a normal": [random.Random(3).gauss(5, 2) for _ in range(20)],
    "a small spread on a large mean": [1e6 + 1e-3 * index for index in range(5)],
    "negative": [-3.0, -1.5, -7.25, -2.0],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_interval_equals_scipys(name):
    values = SAMPLES[name]
    interval = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert interval.runs == len(values)
    assert interval.mean - interval.half == pytest.approx(low, rel=1e-12)
    assert interval.mean + interval.half == pytest.approx(high, rel=1e-12)
    assert interval.half == pytest.approx((high - low) / 2, rel=1e-6)


def test_interval_holds_the_true_mean_in_95_of_100_cases():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        interval = estimate([draw.gauss(7, 3) for _ in range(3)])
        hits += abs(interval.mean - 7) <= interval.half
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors


@pytest.mark.parametrize("name", SAMPLES)
def test_paired_p_equals_scipys(name):
    first = SAMPLES[name]
    draw = random.Random(8)
    second = [value + draw.gauss(0.3, 1) for value in first]
    pair = paired(first, second)
    expected = stats.ttest_rel(first, second)
    assert pair.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert pair.difference.mean - pair.difference.half == pytest.approx(interval.low, rel=1e-9)
    assert pair.difference.mean + pair.difference.half == pytest.approx(interval.high, rel=1e-9)
    assert pair.difference.mean == pytest.approx(sum(first) / len(first) - sum(second) / len(second), abs=1e-9)


def test_paired_is_two_sided_and_turns_around_with_its_sides():
    one, other = paired(ACCURACIES, [0.95, 0.96, 0.94]), paired([0.95, 0.96, 0.94], ACCURACIES)
    assert one.p == other.p
    assert one.difference.mean == -other.difference.mean > 0
    assert one.difference.half == other.difference.half


def test_paired_sees_what_unpaired_means_hide():
    """Seeds differ by much, recipes by little but always."""
    first, second = [0.60, 0.70, 0.80, 0.90], [0.591, 0.690, 0.789, 0.890]
    assert paired(first, second).p < 0.001 < 0.9 < stats.ttest_ind(first, second).pvalue


def test_constant_differences_leave_nothing_to_test():
    assert paired([0.5, 0.75, 1.0], [0.25, 0.5, 0.75]).p == 0
    assert paired(ACCURACIES, ACCURACIES).p == 1
    for same in ([2.5] * 4, [0.1] * 3):
        assert estimate(same) == Estimate(pytest.approx(same[0]), 0.0, len(same))


def test_one_value_has_a_mean_and_no_interval():
    assert estimate([3]) == Estimate(3.0, None, 1)
    pair = paired([0.9], [0.8])
    assert pair.p is None
    assert pair.difference == Estimate(pytest.approx(0.1), None, 1)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_no_interval(broken):
    """As the loss of a run that diverged: the others must still be compared."""
    for values in ([broken], [broken, 1.0, 2.0], [broken, broken]):
        interval = estimate(values)
        assert (math.isnan(interval.mean), interval.half, interval.runs) == (True, None, len(values))
    assert paired([1.0, broken], [0.5, 0.25]).p is None
    assert paired([broken, broken], [broken, broken]).p is None


def test_unequal_lengths_and_no_values_are_errors():
    with pytest.raises(ValueError, match="as many first values as second ones, not 3 and 2"):
        paired(ACCURACIES, ACCURACIES[:2])
    for nothing in (lambda: estimate([]), lambda: paired([], [])):
        with pytest.raises(ValueError, match="at least one value"):
            nothing()


def test_ends_of_an_interval_stay_within_what_the_metric_can_be():
    assert Estimate(45.3, 127.1, 2).ends(0, 100) == (0, 100)
    assert Estimate(55.0, 14.0, 2).ends(0, 100) == (41, 69)
    assert Estimate(0.5, 0.75, 2).ends(0) == (0, 1.25)
    assert Estimate(0.5, 0.75, 2).ends() == (-0.25, 1.25)
    assert Estimate(-1.0, 0.5, 2).ends(0) == (-1.0, -0.5)  # the mean is never cut off
    assert Estimate(0.5, None, 1).ends(0, 100) is None


def test_estimates_are_apart_where_their_intervals_do_not_meet():
    one = Estimate(90.0, 3.0, 3)
    assert one.is_apart_from(Estimate(80.0, 6.9, 3))
    assert not one.is_apart_from(Estimate(80.0, 7.0, 3))
    assert not one.is_apart_from(Estimate(0.0, None, 1))
    assert not Estimate(0.0, None, 1).is_apart_from(one)
