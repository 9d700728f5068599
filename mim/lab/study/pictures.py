"""Pictures of a study: heat maps over two keys, dots with intervals, and metrics over AvgDist."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from mim.ops.intervals import Estimate
from mim.pictures.canvas import pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, BEST = "#222222", "#e3e3e3", "#c8501e"
SERIES = ("#1f5fa8", "#c8501e", "#2a8a57", "#7a4fa3", "#8a6d1c")  # apart also for those who see fewer colours
TITLE_LETTER = 0.075  # inches
Grid = Sequence[Sequence[Estimate | None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """What a metric can be, and the digits that it is written with."""

    least: float = 0.0
    most: float = 100.0
    digits: int = 1  # after the point

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


PERCENT = Scale()
Scales = Mapping[str, Scale]  # by title of the metric; percent for others


@dataclass(frozen=True, slots=True)
class Dot:
    """A metric at a position on the horizontal axis."""

    x: float
    y: Estimate
    series: str  # shares a colour
    label: str  # stands beside the dot


def draw_heat_maps(
    title: str,
    maps: Mapping[str, Grid],
    down: str,
    rows: Sequence[str],
    across: str,
    columns: Sequence[str],
    scales: Scales | None = None,
) -> Tensor:
    """(H, W, 3) uint8: a map for each metric, side by side, each with its own scale.

    The best cell has a frame where its interval meets that of no other. `rows` are the values of the key `down`,
    `columns` those of the key `across`.
    """
    from matplotlib.patches import Rectangle

    width, height = max(0.95 * len(columns), 1.9) + 1.0, max(0.62 * len(rows), 1.2) + 1.3
    figure = _figure(title, len(maps) * width + 0.5, height)
    for axes, (name, cells) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        scale = (scales or {}).get(name, PERCENT)
        means = np.array([[np.nan if cell is None else cell.mean for cell in row] for row in cells])
        low, top = np.nanmin(means), np.nanmax(means)
        axes.imshow(means, cmap="YlGnBu", vmin=low - 0.15 * (top - low), vmax=top, aspect="auto")
        for (row, column), mean in np.ndenumerate(means):
            cell = cells[row][column]
            text = "–" if cell is None else f"{scale.text(mean)}\n{interval_text(cell, scale)}".strip()
            dark = top > low and (mean - low) / (top - low) > 0.55
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
            others = [each for each in chain(*cells) if each is not None and each is not cell]
            if mean == top and cell is not None and others and all(map(cell.is_apart_from, others)):
                corner = (column - 0.47, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=BEST, lw=1.8))
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_xlabel(across, fontsize=8.5)
        axes.set_ylabel(down, fontsize=8.5)
        axes.label_outer()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return pixels(figure)


def draw_points(
    title: str,
    names: Sequence[str],
    metrics: Mapping[str, Sequence[Estimate | None]],
    scales: Scales | None = None,
) -> Tensor:
    """(H, W, 3) uint8: a column for each metric, a row for each name, a dot with its interval."""
    labels = TITLE_LETTER * max(map(len, names)) + 0.3
    figure = _figure(title, labels + len(metrics) * 2.5 + 0.2, max(0.3 * len(names), 0.9) + 1.2)
    style: dict[str, Any] = {"fmt": "o", "ms": 5, "color": SERIES[0], "capsize": 2.5, "lw": 1.3}
    plots = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, (name, estimates) in zip(plots, metrics.items(), strict=True):
        for row, each in enumerate(estimates):
            if each is not None:
                down, up = _reach(each, (scales or {}).get(name, PERCENT))
                axes.errorbar(each.mean, row, xerr=[[down], [up]], **style)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.label_outer()
        _plain(axes, name, "x")
    return pixels(figure)


def draw_over(
    title: str, across: str, plots: Mapping[str, list[Dot]], labels: str = "", scales: Scales | None = None
) -> Tensor:
    """(H, W, 3) uint8: a plot for each metric over one quantity; the dots' labels can be values of the key `labels`."""
    columns = min(len(plots), 3)
    rows = -(-len(plots) // columns)
    figure = _figure(title, columns * 4.0 + 0.2, rows * 3.1 + 0.35)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, dots) in zip(grid, plots.items(), strict=False):
        scale = (scales or {}).get(name, PERCENT)
        for number, series in enumerate(dict.fromkeys(dot.series for dot in dots)):
            colour = SERIES[number % len(SERIES)]
            same = sorted((dot for dot in dots if dot.series == series), key=lambda dot: dot.x)
            x, y, down, up = zip(*((dot.x, dot.y.mean, *_reach(dot.y, scale)) for dot in same), strict=True)
            axes.errorbar(x, y, yerr=[down, up], fmt="o-", ms=4.5, color=colour, capsize=2.5, lw=1.1, label=series)
            style = {"textcoords": "offset points", "fontsize": 7, "color": colour}
            for dot in same:
                axes.annotate(dot.label, (dot.x, dot.y.mean), xytext=(4, 4), **style)
        axes.set_xlabel(across, fontsize=8.5)
        axes.margins(x=0.14, y=0.12)
        _plain(axes, name, "both")
    if grid[0].get_legend_handles_labels()[1]:
        grid[0].legend(fontsize=7, frameon=False, title=f"numbers: {labels}" if labels else None, title_fontsize=7)
    for axes in grid[len(plots) :]:
        axes.remove()
    return pixels(figure)


def interval_text(metric: Estimate, scale: Scale = PERCENT) -> str:
    """Half the interval with a sign, or both ends where one would leave the scale; empty where there is none."""
    ends = metric.ends(scale.least, scale.most)
    if ends is None or metric.half is None:
        return ""
    return f"± {scale.text(metric.half)}" if ends == metric.ends() else f"[{', '.join(map(scale.text, ends))}]"


def _reach(metric: Estimate, scale: Scale) -> tuple[float, float]:
    """How far the interval goes down and up, within the scale."""
    low, high = metric.ends(scale.least, scale.most) or (metric.mean, metric.mean)
    return metric.mean - low, high - metric.mean


def _figure(title: str, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    figure = Figure(figsize=(max(width, TITLE_LETTER * len(title) + 0.4), height), dpi=160, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold", color=INK)
    return figure


def _plain(axes: "Axes", title: str, grid: Literal["x", "both"]) -> None:
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=8, color="#999999")
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
