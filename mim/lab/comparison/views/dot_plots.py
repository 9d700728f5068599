"""Dots and intervals of a metric over entries, in percent of a width: a page draws them at any size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mim.lab.comparison.result import Column, Comparison
from mim.lab.comparison.views.numbers import Bounds, Cell, Style, bounds_of, cells, styles_of, ticks
from mim.ops.intervals import Estimate

LETTERS = 26  # of labels and spaces below the narrowest plot, which is 190 px wide


@dataclass(frozen=True, slots=True)
class Dots:
    """An entry in a plot, positions in percent of the width."""

    entry: int
    cell: Cell
    mean: float
    interval: tuple[float, float] | None
    open_ends: tuple[bool, bool]  # whether the interval continues beyond either end
    runs: list[float]


@dataclass(frozen=True, slots=True)
class Plot:
    """Dots and intervals of one column."""

    title: str
    unit: str
    ticks: list[tuple[float, str]]  # position in percent, and label
    rows: list[Dots]


def plots(comparison: Comparison) -> list[Plot]:
    """A plot for each accuracy with more than one value, but not for reference values."""
    columns = [column for column in comparison.columns if column.section == "accuracy"]
    styles = styles_of(columns, comparison.entries)
    drawn = [_plot(comparison, column, styles[column.key]) for column in columns if column.better != "neither"]
    return [plot for plot in drawn if plot is not None]


def _plot(comparison: Comparison, column: Column, style: Style) -> Plot | None:
    estimates = [entry.metrics.get(column.key) for entry in comparison.entries]
    finite = {index: each for index, each in enumerate(estimates) if each is not None and math.isfinite(each.mean)}
    values = {index: comparison.entries[index].values.get(column.key, ()) for index in finite}
    runs = {index: list(filter(math.isfinite, each)) for index, each in values.items()}
    if max(len(finite), *map(len, runs.values()), 0) < 2:
        return None
    bounds = bounds_of(column, comparison.entries)
    texts = cells(comparison.entries, estimates, style, comparison.best.get(column.key, ""), bounds)
    low, high = _range(list(finite.values()), [value for each in runs.values() for value in each], bounds)

    def position(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 3)

    rows = []
    for index, each in finite.items():
        first, last = each.ends(*bounds) or (each.mean, each.mean)
        interval = None if each.half is None else (position(first), position(last))
        dots = [position(value) for value in runs[index]]
        rows.append(Dots(index, texts[index], position(each.mean), interval, (first < low, last > high), dots))
    marks = ticks(low, high)
    digits = max(0, -math.floor(math.log10((marks[1] - marks[0]) / style.factor) + 1e-9)) if len(marks) > 1 else 1
    labels = _with_room([(position(mark), Style(style.factor, "", digits).text(mark)) for mark in marks])
    return Plot(column.title, style.unit, labels, rows)


def _with_room(labels: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Labels, or every second of them, that stand apart in the narrowest plot."""
    while len(labels) > 2 and sum(len(text) + 1 for _, text in labels) > LETTERS:
        labels = labels[::2]
    return labels


def _range(estimates: Sequence[Estimate], runs: Sequence[float], bounds: Bounds) -> tuple[float, float]:
    """The range of the axis: all means and runs, and as much of the intervals as leaves these readable."""
    points = [*(each.mean for each in estimates), *runs]
    low, high = min(points), max(points)
    span = high - low or abs(high) * 0.1 or 1.0
    ends = [end for each in estimates for end in each.ends(*bounds) or (each.mean, each.mean)]
    low, high = max(min(low, *ends), low - span / 2), min(max(high, *ends), high + span / 2)
    edge = 0.05 * (high - low or span)
    return max(low - edge, min(bounds[0], low)), min(high + edge, max(bounds[1], high))
