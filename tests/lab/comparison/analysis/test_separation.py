"""Which entries the seeds tell apart, and which value is then marked as the best."""

import pytest
from scipy import stats

from mim.lab.comparison.analysis.metrics import ColumnValues
from mim.lab.comparison.analysis.separation import best_estimate, best_of, paired_over_seeds
from mim.lab.comparison.result import Better, Column
from mim.ops.intervals import Estimate


def best(values: dict[str, dict[int, float]], better: Better = "higher", tested=True, exact=False) -> str:
    column = Column("metric", "metric", "%", "accuracy", better, exact=exact)
    by_seeds = {name: {(seed, seed): value for seed, value in each.items()} for name, each in values.items()}
    return best_of([ColumnValues(column, by_seeds, tested)]).get("metric", "")


CLEAR = {"a": {0: 90.0, 1: 91.0, 2: 92.0}, "b": {0: 80.0, 1: 81.5, 2: 82.0}}
CLOSE = {"a": {0: 90.0, 1: 91.0, 2: 92.0}, "b": {0: 90.5, 1: 89.0, 2: 92.0}}


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        (CLEAR, "higher", "a"),
        (CLEAR, "lower", "b"),
        (CLEAR, "neither", ""),
        (CLOSE, "higher", ""),
        ({**CLEAR, "c": CLOSE["b"]}, "higher", ""),  # the next one is too near
        ({**CLEAR, "c": CLEAR["a"]}, "higher", ""),  # two are equally good
        ({"a": {0: 90.0}, "b": {0: 80.0}}, "higher", ""),  # one seed
        ({"a": CLEAR["a"], "b": {7: 1.0, 8: 2.0, 9: 1.5}}, "higher", ""),  # no seed in common
        ({"a": CLEAR["a"]}, "higher", ""),
        ({**CLEAR, "c": {0: float("nan"), 1: 1.0}}, "higher", ""),
    ],
)
def test_best_of_a_tested_column_is_separated_from_every_other_by_the_paired_test(values, better, expected):
    assert best(values, better) == expected


def test_paired_test_over_the_seeds_that_two_entries_share_is_that_of_scipy():
    first, second = ({(s, s): v for s, v in values.items()} for values in ({**CLEAR["a"], 5: 0.0}, CLOSE["b"]))
    seeds, result = paired_over_seeds(first, second)
    assert seeds == (0, 1, 2)
    assert result.p == pytest.approx(stats.ttest_rel([90, 91, 92], [90.5, 89, 92]).pvalue)
    assert paired_over_seeds(first, {(0, 0): 1.0}) is None
    assert paired_over_seeds(first, {}) is None


def test_best_of_what_is_not_tested_needs_intervals_that_do_not_meet():
    assert best(CLEAR, tested=False) == "a"  # 91 +- 2.5 and 81.2 +- 2.6
    assert best(CLOSE, tested=False) == ""
    assert best({"a": {0: 90.0}, "b": {0: 80.0}}, tested=False) == ""


def test_best_of_what_is_counted_needs_no_seeds():
    counted = {"a": {0: 5.0}, "b": {0: 6.0}}
    assert best(counted, "lower", tested=False, exact=True) == "a"
    assert best({"a": {0: 5.0}, "b": {0: 5.0}}, "lower", tested=False, exact=True) == ""


def test_best_estimate_within_a_budget():
    estimates = {"a": Estimate(90.0, 1.0, 3), "b": Estimate(80.0, 8.0, 3)}
    assert best_estimate(estimates, "higher") == "a"
    assert best_estimate({**estimates, "b": Estimate(80.0, 9.5, 3)}, "higher") == ""
    assert best_estimate({**estimates, "b": Estimate(80.0, None, 1)}, "higher") == ""
