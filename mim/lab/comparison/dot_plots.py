"""Dots and intervals of a figure over entries, as places in percent of a width: a page draws them at any size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mim.lab.comparison.numbers import Cell, Style, cells, styles_of, ticks
from mim.lab.comparison.result import Column, Comparison
from mim.ops.intervals import Estimate


@dataclass(frozen=True, slots=True)
class Dots:
    """An entry in a plot of dots, places in percent of the width. cut: whether the interval goes on at either end."""

    entry: int
    cell: Cell
    mean: float
    interval: tuple[float, float] | None
    cut: tuple[bool, bool]
    runs: list[float]


@dataclass(frozen=True, slots=True)
class Plot:
    """Dots and intervals of one column. ticks: place in percent, and what stands there."""

    title: str
    unit: str
    ticks: list[tuple[float, str]]
    rows: list[Dots]


def plots(comparison: Comparison) -> list[Plot]:
    """A plot for each accuracy of which there is more than one value; none for those that are there for reference."""
    columns = [column for column in comparison.columns if column.section == "accuracy"]
    styles = styles_of(columns, comparison.entries)
    found = [_plot(comparison, column, styles[column.key]) for column in columns if column.better != "neither"]
    return [plot for plot in found if plot is not None]


def _plot(comparison: Comparison, column: Column, style: Style) -> Plot | None:
    figures = [entry.figures.get(column.key) for entry in comparison.entries]
    shown = [found if found is not None and math.isfinite(found.mean) else None for found in figures]
    runs = [
        [value for value in entry.values.get(column.key, ()) if found and math.isfinite(value)]
        for entry, found in zip(comparison.entries, shown, strict=True)
    ]
    known = [found for found in shown if found]
    if max(len(known), *map(len, runs)) < 2:
        return None
    written = cells(comparison.entries, figures, style, column.better)
    low, high = _range(known, [value for group in runs for value in group], column.unit)

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 3)

    rows = []
    for number, found in enumerate(shown):
        if found is None:
            continue
        ends = None if found.half is None else (found.mean - found.half, found.mean + found.half)
        interval = ends and (place(ends[0]), place(ends[1]))
        cut = (ends[0] < low, ends[1] > high) if ends else (False, False)
        dots = [place(value) for value in runs[number]]
        rows.append(Dots(number, written[number], place(found.mean), interval, cut, dots))
    marks = ticks(low, high)
    digits = max(0, -math.floor(math.log10((marks[1] - marks[0]) / style.factor) + 1e-9)) if len(marks) > 1 else 1
    labels = [(place(mark), Style(style.factor, "", digits).text(mark)) for mark in marks]
    return Plot(column.title, style.unit, labels, rows)


def _range(figures: Iterable[Estimate], runs: Iterable[float], unit: str) -> tuple[float, float]:
    """What an axis shows: all means and runs, and as much of the intervals as leaves these readable."""
    figures = list(figures)
    points = [found.mean for found in figures] + list(runs)
    low, high = min(points), max(points)
    span = high - low or abs(high) * 0.1 or 1.0
    ends = [found.mean + sign * (found.half or 0) for found in figures for sign in (-1, 1)]
    low, high = max(min(low, *ends), low - span / 2), min(max(high, *ends), high + span / 2)
    edge = 0.05 * (high - low or span)
    if unit == "%":
        return max(low - edge, min(0.0, low)), min(high + edge, max(100.0, high))
    return low - edge, high + edge
