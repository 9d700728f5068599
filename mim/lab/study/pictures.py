"""Pictures of a study: heat maps over two keys, dots with intervals, and figures over a third."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mim.ops.intervals import Estimate
from mim.pictures.canvas import pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, GRID, BEST = "#222222", "#1f5fa8", "#e3e3e3", "#c8501e"
SERIES = (BLUE, "#c8501e", "#2a8a57", "#7a4fa3", "#8a6d1c")  # apart also for those who see fewer colours


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of a picture: a row of cells for each name in `rows`; None where there is no value."""

    title: str
    cells: Sequence[Sequence[Estimate | None]]
    rows: Sequence[str]
    columns: Sequence[str] = field(default_factory=tuple)


def draw_heat_map(title: str, panels: Sequence[Panel], down: str, across: str) -> Tensor:
    """(H, W, 3) uint8: panels side by side, each with a scale of its own; the best cell is framed.

    down, across: what the rows and the columns are values of.
    """
    from matplotlib.patches import Rectangle

    rows, columns = len(panels[0].rows), len(panels[0].columns)
    wide, high = max(0.95 * columns, 1.9), max(0.62 * rows, 1.2)
    figure = _figure(title, len(panels) * (wide + 1.0) + 0.5, high + 1.3)
    for place, panel in enumerate(panels):
        axes = _axes(figure, 0.75 + place * (wide + 1.0), 0.6, wide, high)
        means = np.array([[np.nan if cell is None else cell.mean for cell in row] for row in panel.cells])
        low, top = np.nanmin(means), np.nanmax(means)
        axes.imshow(means, cmap="YlGnBu", vmin=low - 0.15 * (top - low), vmax=top, aspect="auto")
        for (row, column), mean in np.ndenumerate(means):
            cell = panel.cells[row][column]
            dark = top > low and (mean - low) / (top - low) > 0.55
            text = "–" if cell is None else f"{mean:.1f}" + (f"\n± {cell.half:.1f}" if cell.half is not None else "")
            colour = INK if cell is None or not dark else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
            if mean == top:
                axes.add_patch(
                    Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="#c8501e", lw=1.8)
                )
        axes.set_title(panel.title, fontsize=9, pad=6)
        axes.set_xticks(range(columns), panel.columns, fontsize=8)
        axes.set_yticks(range(rows), panel.rows, fontsize=8)
        axes.set_xlabel(across, fontsize=8.5)
        if place == 0:
            axes.set_ylabel(down, fontsize=8.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return pixels(figure)


def draw_points(title: str, panels: Sequence[Panel]) -> Tensor:
    """(H, W, 3) uint8: a panel a figure, a row a trial, a dot with its interval."""
    names = panels[0].rows
    high, label = max(0.3 * len(names), 0.9), 0.075 * max(map(len, names)) + 0.3
    figure = _figure(title, label + len(panels) * 2.5 + 0.2, high + 1.2)
    for place, panel in enumerate(panels):
        axes = _axes(figure, label + place * 2.5, 0.45, 2.25, high)
        for row, (cell,) in enumerate(panel.cells):
            if cell is not None:
                half = cell.half or 0.0
                axes.errorbar(cell.mean, row, xerr=half, fmt="o", ms=5, color=BLUE, capsize=2.5, lw=1.3)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names), fontsize=8)
        axes.set_title(panel.title, fontsize=9, pad=6)
        _plain(axes)
    return pixels(figure)


@dataclass(frozen=True, slots=True)
class Dot:
    """A figure over another one. series: what shares a colour; label: what stands beside the dot."""

    over: float
    figure: Estimate
    series: str
    label: str


def draw_over(title: str, across: str, panels: dict[str, list[Dot]], labels: str = "") -> Tensor:
    """(H, W, 3) uint8: each panel's figures over another one, each dot with its interval and its label.

    labels: what the labels are values of, where they are.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _figure(title, columns * 4.0 + 0.2, rows * 3.1 + 0.35)
    for place, (name, points) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        axes = _axes(figure, 0.6 + column * 4.0, 0.5 + (rows - 1 - row) * 3.1, 3.3, 2.3)
        for colour, series in zip(cycle(SERIES), dict.fromkeys(dot.series for dot in points), strict=False):
            chosen = sorted((dot for dot in points if dot.series == series), key=lambda dot: dot.over)
            x, y = [dot.over for dot in chosen], [dot.figure.mean for dot in chosen]
            halves = [dot.figure.half or 0.0 for dot in chosen]
            axes.errorbar(x, y, yerr=halves, fmt="o-", ms=4.5, color=colour, capsize=2.5, lw=1.1, label=series)
            for dot in chosen:
                place_of = (dot.over, dot.figure.mean)
                axes.annotate(dot.label, place_of, xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
        if place == 0 and points[0].series:
            axes.legend(fontsize=7, frameon=False, title=f"numbers: {labels}" if labels else None, title_fontsize=7)
        axes.set_title(name, fontsize=9, pad=6)
        axes.set_xlabel(across, fontsize=8.5)
        axes.margins(x=0.14, y=0.12)
        _plain(axes)
        axes.grid(axis="y", color=GRID, lw=0.8)
    return pixels(figure)


def _figure(title: str, wide: float, high: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    wide = max(wide, 0.075 * len(title) + 0.4)
    figure = Figure(figsize=(wide, high), dpi=160)
    figure.text(0.15 / wide, 1 - 0.12 / high, title, ha="left", va="top", fontsize=9.5, fontweight="bold", color=INK)
    return figure


def _axes(figure: "Figure", left: float, bottom: float, wide: float, high: float) -> "Axes":
    """Axes placed in inches."""
    whole_wide, whole_high = figure.get_size_inches()
    return figure.add_axes((left / whole_wide, bottom / whole_high, wide / whole_wide, high / whole_high))


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=8, color="#999999")
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
