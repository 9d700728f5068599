"""Lines of a chart of curves: each seed's, the mean over seeds, and the lowest and highest seed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from mim.lab.comparison.result import Axis, Comparison, Curve
from mim.lab.comparison.views.figures.figure import MEAN, Row

SIGNIFICANT = 7  # digits of values and positions
_Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A metric of one recipe at positions on each axis; of a seed, or the mean over seeds with its ends."""

    recipe: str
    seed: str
    metric: str
    at: dict[Axis, tuple[float, ...]]
    values: tuple[float, ...]
    lowest: tuple[float, ...] | None = None  # over seeds, where there are several
    highest: tuple[float, ...] | None = None

    def rows(self, axis: Axis) -> Iterator[Row]:
        """Its rows over one axis."""
        ends = zip(self.lowest, self.highest, strict=True) if self.lowest and self.highest else None
        for x, value in zip(self.at.get(axis, ()), self.values, strict=False):
            low, high = next(ends) if ends else (None, None)
            yield {"recipe": self.recipe, "seed": self.seed, "x": x, "value": value, "low": low, "high": high}


def lines_of(comparison: Comparison) -> list[Line]:
    """All lines, by metric and in the order of the entries. Values that are not finite are left out.

    Raises ValueError for a curve of an unknown entry.
    """
    names = [entry.name for entry in comparison.entries]
    for curve in comparison.curves:
        if curve.entry not in names:
            raise ValueError(f"a curve belongs to entry {curve.entry!r}, which is not compared; there are {names}")
    lines = []
    for metric in dict.fromkeys(curve.metric for curve in comparison.curves):
        for name in names:
            seeds = [each for each in comparison.curves if (each.entry, each.metric) == (name, metric)]
            lines += [*map(_line, seeds), *_means(seeds)]
    return lines


def _line(curve: Curve) -> Line:
    known = [index for index, value in enumerate(curve.values) if math.isfinite(value)]
    at: dict[Axis, tuple[float, ...]] = {
        axis: tuple(_rounded(places[index]) for index in known) for axis, places in curve.at.items()
    }
    values = tuple(_rounded(curve.values[index]) for index in known)
    return Line(curve.entry, str(curve.seed), curve.metric, at, values)


def _means(curves: Sequence[Curve]) -> list[Line]:
    """The mean over seeds: one line, or one for each axis where their means are of other positions."""
    means: list[Line] = []
    for axis in dict.fromkeys(axis for curve in curves for axis in curve.at):
        known = [_points(curve, axis) for curve in curves if axis in curve.at]
        together = _together([points for points in known if points])
        if not together:
            continue
        places = tuple(_rounded(x) for x, _ in together)
        values, lowest, highest = (
            tuple(_rounded(function(each)) for _, each in together) for function in (fmean, min, max)
        )
        same = next((line for line in means if line.values == values and line.lowest in (lowest, None)), None)
        if same is not None:
            same.at[axis] = places
        elif len(known) > 1:
            means.append(Line(curves[0].entry, MEAN, curves[0].metric, {axis: places}, values, lowest, highest))
        else:
            means.append(Line(curves[0].entry, MEAN, curves[0].metric, {axis: places}, values))
    return means


def _points(curve: Curve, axis: Axis) -> _Points:
    return [(x, y) for x, y in zip(curve.at[axis], curve.values, strict=True) if math.isfinite(y)]


def _together(lines: Sequence[_Points]) -> list[tuple[float, list[float]]]:
    """Positions, and the values of all lines there.

    Point by point where they have as many; else wherever one has a point and all have values, between points linearly.
    """
    if not lines:
        return []
    if len({len(line) for line in lines}) == 1:
        return [(fmean(x for x, _ in each), [y for _, y in each]) for each in zip(*lines, strict=True)]
    first, last = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    places = sorted({x for line in lines for x, _ in line if first <= x <= last})
    values = [np.interp(places, [x for x, _ in line], [y for _, y in line]) for line in lines]
    return [(x, [float(each[index]) for each in values]) for index, x in enumerate(places)]


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")
