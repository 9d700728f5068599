"""Separation: whether the seeds tell two entries apart in a column, and which value is then the best."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite

from mim.lab.comparison.analysis.metrics import ColumnValues, Values, by_seed, estimate_of
from mim.lab.comparison.result import Better, PairedTest
from mim.ops.intervals import Estimate, Paired, paired

LEVEL = 0.05  # of p, below which two entries are separated
ALL_PAIRS = 6  # entries; of more, each is tested against the first only


def paired_tests(columns: Sequence[ColumnValues], names: Sequence[str]) -> tuple[PairedTest, ...]:
    """A test of every pair of entries that share two seeds or more (of pretraining and transfer), in tested columns."""
    pairs = list(combinations(names, 2)) if len(names) <= ALL_PAIRS else [(names[0], other) for other in names[1:]]
    tests = []
    for column in columns:
        for first, second in pairs if column.tested else ():
            test = paired_over_seeds(column.values.get(first, {}), column.values.get(second, {}))
            if test is not None:
                tests.append(PairedTest(column.column.key, first, second, *test))
    return tuple(tests)


def paired_over_seeds(first: Values, second: Values) -> tuple[tuple[int, ...], Paired] | None:
    """The seeds that two entries share, and the paired test over them; None where they are fewer than two."""
    shared = first.keys() & second.keys()
    if not shared:
        return None
    ours, theirs = (by_seed({seeds: values[seeds] for seeds in shared}) for values in (first, second))
    return (tuple(ours), paired(list(ours.values()), list(theirs.values()))) if len(ours) >= 2 else None


def is_separated(result: Paired) -> bool:
    """Whether a paired test tells two entries apart."""
    return result.p is not None and result.p < LEVEL


def best_of(columns: Sequence[ColumnValues]) -> dict[str, str]:
    """The entry with the best mean of each column, where the column separates it from every other entry."""
    best = {}
    for each in columns:
        estimates = {name: estimate_of(values) for name, values in each.values.items()}
        name = _best(estimates, each.column.better)
        if name and all(_apart(each, name, other, estimates) for other in estimates if other != name):
            best[each.column.key] = name
    return best


def best_estimate(estimates: Mapping[str, Estimate], better: Better) -> str:
    """The entry with the best mean, where its interval meets that of no other entry; empty where there is none."""
    name = _best(estimates, better)
    others = [estimate for other, estimate in estimates.items() if other != name]
    return name if name and all(estimates[name].is_apart_from(other) for other in others) else ""


def _best(estimates: Mapping[str, Estimate], better: Better) -> str:
    """The entry with the best mean of several; empty where there is none."""
    means = {name: estimate.mean for name, estimate in estimates.items()}
    if len(means) < 2 or better == "neither" or not all(map(isfinite, means.values())):
        return ""
    return (max if better == "higher" else min)(means, key=means.__getitem__)


def _apart(column: ColumnValues, name: str, other: str, estimates: Mapping[str, Estimate]) -> bool:
    """Whether two entries differ beyond chance: by the paired test of a tested column, else by their intervals."""
    if column.column.exact:
        return estimates[name].mean != estimates[other].mean
    if column.tested:
        test = paired_over_seeds(column.values[name], column.values[other])
        return test is not None and is_separated(test[1])
    return estimates[name].is_apart_from(estimates[other])
