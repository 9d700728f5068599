"""Means over seeds: 95% intervals, and the paired test between two recipes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean, stdev

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `runs` values; half: half the width of its 95% interval, None where one value tells of no spread.

    A value that is not finite, as of a run that diverged, makes the mean NaN and leaves no interval.
    """

    mean: float
    half: float | None
    runs: int

    def scaled(self, factor: float) -> "Estimate":
        """The estimate in another unit."""
        return Estimate(self.mean * factor, None if self.half is None else self.half * abs(factor), self.runs)


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference of pairs (first minus second), and the p-value of no difference.

    p is None for a single pair, and where a difference is not finite.
    """

    difference: Estimate
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval by Student's t with n - 1 degrees of freedom. Raises ValueError where there are none."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    count = len(values)
    if not all(map(isfinite, values)):  # of which the standard library makes an AttributeError
        return Estimate(nan, None, count)
    if count == 1:
        return Estimate(float(values[0]), None, 1)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    return Estimate(fmean(values), quantile * stdev(values) / count**0.5, count)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The two-sided paired t-test of values that belong together one by one, such as of one seed.

    Equal differences leave nothing to test: p is then 1 where they are 0, else 0. Raises ValueError for unequal
    lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired test needs as many values on either side, not {len(first)} and {len(second)}")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    found = estimate(differences)
    if found.half is None:
        return Paired(found, None)
    spread = stdev(differences) / len(differences) ** 0.5
    if spread == 0:
        return Paired(found, 1.0 if found.mean == 0 else 0.0)
    return Paired(found, float(2 * stats.t.sf(abs(found.mean) / spread, len(differences) - 1)))
