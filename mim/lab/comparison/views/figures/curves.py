"""Figures of curves: one for each metric and each axis that it is known over."""

from collections.abc import Sequence
from dataclasses import dataclass

from mim.lab.comparison.formatting import capital, join_names
from mim.lab.comparison.result import Axis, Comparison
from mim.lab.comparison.views.figures.figure import (
    MEAN,
    Figure,
    Look,
    Spec,
    number_title,
    recipe_dashes,
    recipe_encoding,
    recipe_shapes,
)
from mim.lab.comparison.views.figures.lines import Line, lines_of
from mim.lab.comparison.views.numbers import unit_for
from mim.lab.layout import slug

TITLES: dict[Axis, tuple[str, str, str]] = {  # the title of the axis, a word for it, and its unit as numbers.py has it
    "images_seen": ("Images seen", "images seen", "images"),
    "flops": ("FLOPs spent on training", "FLOPs", "FLOP"),
    "seconds": ("Time spent on training and evaluation", "seconds", "s"),
}
LIT = {"condition": {"test": "lit === null || datum.recipe === lit", "value": 1}, "value": 0.12}


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """A figure of curves with what the page needs to know of it."""

    figure: Figure
    metric: str
    axis: Axis
    factor: float  # what positions are divided by
    unit: str
    positive: bool  # whether a log scale can show all values
    absent: tuple[str, ...]  # recipes without values over this axis


def curve_figures(comparison: Comparison) -> tuple[list[CurveFigure], list[Line]]:
    """The figures, by metric and then by axis, and the lines that they draw."""
    lines, names = lines_of(comparison), [entry.name for entry in comparison.entries]
    figures = []
    for metric in dict.fromkeys(line.metric for line in lines):
        title = capital(comparison.metric_names.get(metric, metric))
        for axis in TITLES:
            of_figure = [line for line in lines if line.metric == metric and line.at.get(axis)]
            if of_figure:
                figures.append(_figure(title, metric, axis, names, of_figure))
    return figures, lines


def curve_height(look: Look) -> float:
    """Of the chart without its legend."""
    return round(min(0.58 * look.width, 22 * look.size))


def absent_text(curve: CurveFigure) -> str:
    """Which recipes have no values over the axis; empty where all have."""
    _, word, _ = TITLES[curve.axis]
    return f"No values over {word}: {', '.join(curve.absent)}." if curve.absent else ""


def _figure(title: str, metric: str, axis: Axis, names: Sequence[str], lines: Sequence[Line]) -> CurveFigure:
    axis_title, word, unit = TITLES[axis]
    factor, axis_unit = unit_for(unit, max(max(line.at[axis]) for line in lines))
    rows = tuple(row for line in lines for row in line.rows(axis))
    present = [name for name in names if any(line.recipe == name for line in lines)]
    text = f"{title} over {word} of {join_names(present)}"
    headings = {
        "recipe": "recipe",
        "seed": "seed",
        "x": number_title(word, "" if unit == "images" else unit),
        "value": title,
        "low": "lowest seed",
        "high": "highest seed",
    }
    full_title = axis_title if unit == "images" else number_title(axis_title, axis_unit)
    spec = _spec(title, full_title, axis, names, factor)
    figure = Figure(f"{slug(metric)}-over-{slug(word)}", title, text, spec, rows, headings, tuple(present))
    positive = all(value > 0 for line in lines for value in line.values)
    return CurveFigure(
        figure, metric, axis, factor, axis_unit, positive, tuple(name for name in names if name not in present)
    )


def _spec(title: str, axis_title: str, axis: Axis, names: Sequence[str], factor: float) -> Spec:
    """A band from the lowest to the highest seed, thin lines of seeds, a thick one of the mean, and a mark at its end.

    The parameter `lit` is the recipe that stands out, and the data set `reading` what is read off at a position.
    """
    x_axis: Spec = {"grid": False, "tickCount": {"expr": "ceil(width / (6.5 * letter))"}}
    if axis == "images_seen":
        x_axis["labelExpr"] = "datum.value === 0 ? '0' : format(datum.value, '~s')"
    return {
        "params": [{"name": "lit", "value": None}],
        "transform": [{"calculate": f"datum.x / {factor!r}", "as": "at"}],
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": axis_title, "axis": x_axis, "scale": {"nice": False}},
            "color": recipe_encoding(names),
        },
        "layer": _layers(title, names),
    }


def _layers(title: str, names: Sequence[str]) -> list[Spec]:
    """Means are above seeds, and what is read off is above all."""
    of_means = [{"filter": f"datum.seed === '{MEAN}'"}]
    end = {"x": {"aggregate": "max", "field": "at"}, "y": {"aggregate": {"argmax": "x"}, **_y("value", title)}}
    reading = {"name": "reading", "values": []}
    return [
        {
            "name": "band",
            "transform": [*of_means, {"filter": "datum.low !== null"}],
            "mark": "area",
            "encoding": {"y": _y("low", title), "y2": {"field": "high"}, "opacity": _dimmed(0.15)},
        },
        {
            "name": "seeds",
            "transform": [{"filter": f"datum.seed !== '{MEAN}'"}],
            "mark": {"type": "line", "style": "seed"},
            "encoding": {"y": _y("value", title), "detail": {"field": "seed"}, "opacity": _dimmed(0.3)},
        },
        {
            "name": "means",
            "transform": of_means,
            "mark": "line",
            "encoding": {"y": _y("value", title), "strokeDash": recipe_dashes(names), "opacity": LIT},
        },
        {"transform": of_means, "mark": "point", "encoding": {**end, "shape": recipe_shapes(names), "opacity": LIT}},
        {"data": reading, "mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"color": None}},
        {"data": reading, "mark": "point", "encoding": {"y": _y("value", title)}},
    ]


def _y(field: str, title: str) -> Spec:
    """The title stands above the axis."""
    axis = {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "end",
        "titleBaseline": "bottom",
        "titleX": 0,
        "titleY": -6,
        "tickCount": {"expr": "ceil(height / (3 * letter))"},
    }
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": {"zero": False}}


def _dimmed(opacity: float) -> Spec:
    return {"condition": {**LIT["condition"], "value": opacity}, "value": opacity / 6}  # type: ignore[dict-item]
