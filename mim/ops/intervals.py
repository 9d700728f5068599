"""Means over seeds: 95% intervals, and the paired test between two recipes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval. A value that is not finite, as of a run that diverged, makes the mean NaN."""

    mean: float
    half: float | None  # half the width of the interval; None for a single value, or where a value is not finite
    runs: int  # number of values

    def ends(self, least: float = -inf, most: float = inf) -> tuple[float, float] | None:
        """Both ends of the interval, none beyond what the metric can be; None where there is no interval."""
        if self.half is None:
            return None
        return max(self.mean - self.half, min(least, self.mean)), min(self.mean + self.half, max(most, self.mean))

    def is_apart_from(self, other: "Estimate") -> bool:
        """Whether both have intervals, and these do not meet."""
        if self.half is None or other.half is None:
            return False
        return abs(self.mean - other.mean) > self.half + other.half


@dataclass(frozen=True, slots=True)
class Paired:
    """The result of a paired test."""

    difference: Estimate  # the mean of first minus second
    p: float | None  # p-value of no difference; None for a single pair, and where a difference is not finite


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval by Student's t with n - 1 degrees of freedom. Raises ValueError without values."""
    if not values:
        raise ValueError("an estimate needs at least one value")
    count = len(values)
    if not all(map(isfinite, values)):  # the standard library raises AttributeError there
        return Estimate(nan, None, count)
    if count == 1:
        return Estimate(float(values[0]), None, 1)
    from scipy.special import stdtrit  # imported where it is used: half a second

    quantile = float(stdtrit(count - 1, (1 + 0.95) / 2))
    return Estimate(fmean(values), quantile * stdev(values) / count**0.5, count)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The two-sided paired t-test. Values with one index belong together: they have the same seed, for example.

    Where all differences are equal, p is 1 if they are 0, else 0. Raises ValueError for unequal lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired test needs as many first values as second ones, not {len(first)} and {len(second)}")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    mean = estimate(differences)
    if mean.half is None:
        return Paired(mean, None)
    spread = stdev(differences) / len(differences) ** 0.5
    if spread == 0:
        return Paired(mean, 1.0 if mean.mean == 0 else 0.0)
    from scipy.special import stdtr

    return Paired(mean, float(2 * stdtr(len(differences) - 1, -abs(mean.mean) / spread)))
