"""Figures of dots and intervals: a metric over entries."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from mim.lab.comparison.formatting import capital
from mim.lab.comparison.result import Column, Comparison
from mim.lab.comparison.views.figures.figure import (
    MEAN,
    Figure,
    Look,
    Row,
    Spec,
    number_title,
    recipe_encoding,
    recipe_shapes,
)
from mim.lab.comparison.views.numbers import FIGURE_SPACE, Bounds, Cell, Style, bounds_of, cells, styles_of
from mim.lab.layout import slug
from mim.ops.intervals import Estimate

TICK: Spec = {"type": "tick", "orient": "vertical", "style": "end"}
LONGEST = 60  # letters of a file's name that are of the column
FIELDS = ("value", "low", "high")  # of the rows, which are drawn in the unit of the axis


def dot_plots(comparison: Comparison) -> list[Figure]:
    """A figure for each accuracy with more than one value, but not for reference values."""
    columns = [column for column in comparison.columns if column.section == "accuracy"]
    styles = styles_of(columns, comparison.entries)
    stems = Counter(_stem(column) for column in columns)
    figures = []
    for column in columns:
        stem = _stem(column) if stems[_stem(column)] == 1 and _stem(column) else slug(column.key)
        figure = _figure(comparison, column, styles[column.key], f"{stem}-dots") if column.better != "neither" else None
        figures += [figure] if figure is not None else []
    return figures


def dot_height(figure: Figure, look: Look) -> float:
    """A strip for each recipe, and the axis."""
    strips = len({row["recipe"] for row in figure.rows})
    lines = 2.5 if len(figure.rows) > strips else 1.9  # dots of seeds stand below the mean
    return round((lines * strips + 3.6) * look.size)


def _stem(column: Column) -> str:
    return slug(column.title)[:LONGEST].strip("-")


def _figure(comparison: Comparison, column: Column, style: Style, name: str) -> Figure | None:
    entries = comparison.entries
    estimates = [entry.metrics.get(column.key) for entry in entries]
    finite = {index: each for index, each in enumerate(estimates) if each is not None and math.isfinite(each.mean)}
    values = {index: entries[index].values.get(column.key, ()) for index in finite}
    runs = {index: list(filter(math.isfinite, each)) for index, each in values.items()}
    if max(len(finite), *map(len, runs.values()), 0) < 2:
        return None
    bounds = bounds_of(column, entries)
    texts = cells(entries, estimates, style, comparison.best.get(column.key, ""), bounds)
    low, high = _range(list(finite.values()), [value for each in runs.values() for value in each], bounds)
    rows: list[Row] = []
    for index, each in finite.items():
        rows += _rows(entries[index].name, each, entries[index].seeds, values[index], bounds)
    title = capital(column.title)
    full_title = number_title(title, style.unit)
    of_recipes = {entries[index].name: (_text(texts[index]), texts[index].best) for index in finite}
    spec = _spec(full_title, of_recipes, (low / style.factor, high / style.factor), style.factor)
    listed = "; ".join(f"{recipe}: {text}" for recipe, (text, _) in of_recipes.items())
    headings = {
        "recipe": "recipe",
        "seed": "seed",
        "value": number_title(title, column.unit),
        "low": "95% interval from",
        "high": "to",
    }
    return Figure(name, full_title, f"{full_title}. {listed}", spec, tuple(rows), headings, ())


def _text(cell: Cell) -> str:
    """A value with its interval; fonts for papers need no padding."""
    return f"{cell.text} {cell.half}".replace(FIGURE_SPACE, "").rstrip()


def _rows(name: str, estimate: Estimate, seeds: Sequence[int], values: Sequence[float], bounds: Bounds) -> list[Row]:
    """The mean with its interval, then the values behind it where there are several."""
    ends = estimate.ends(*bounds) if estimate.half is not None else None
    low, high = ends or (None, None)
    rows: list[Row] = [{"recipe": name, "seed": MEAN, "value": estimate.mean, "low": low, "high": high}]
    if len(values) > 1:
        numbered: Sequence[object] = seeds if len(seeds) == len(values) else range(1, len(values) + 1)
        rows += [
            {"recipe": name, "seed": str(seed), "value": value}
            for seed, value in zip(numbered, values, strict=True)
            if math.isfinite(value)
        ]
    return rows


def _spec(title: str, texts: Mapping[str, tuple[str, bool]], domain: tuple[float, float], factor: float) -> Spec:
    """Intervals with an end where they do not go on, means, and dots of seeds below. Values stand on the right."""
    names = list(texts)
    left: Spec = {"orient": "left", "grid": False}
    right: Spec = {
        "orient": "right",
        "grid": False,
        "labelExpr": "texts[datum.value]",
        "labelFontWeight": {
            "condition": {"test": "indexof(best, datum.value) >= 0", "value": "bold"},
            "value": "normal",
        },
    }
    y = {"field": "recipe", "type": "nominal", "scale": {"domain": names}, "title": None}
    layers: list[Spec] = [
        {"name": name, "transform": [{"filter": rows}], "mark": mark, "encoding": {**places, "y": {**y, "axis": None}}}
        for name, mark, rows, places in _marks(title, domain, names)
    ]
    layers += [
        {"mark": {"type": "point", "opacity": 0}, "encoding": {"y": {**y, "axis": axis}}} for axis in (left, right)
    ]
    scaled = [
        {"calculate": f"isValid(datum.{field}) ? datum.{field} / {factor!r} : null", "as": field} for field in FIELDS
    ]
    return {
        "params": [
            {"name": "texts", "value": {name: text for name, (text, _) in texts.items()}},
            {"name": "best", "value": [name for name, (_, best) in texts.items() if best]},
        ],
        "transform": scaled,
        "encoding": {"color": recipe_encoding(names)},
        "layer": layers,
        "resolve": {"axis": {"y": "independent"}},
    }


def _marks(title: str, domain: tuple[float, float], names: Sequence[str]) -> list[tuple[str, str | Spec, str, Spec]]:
    """Each mark: its name, what it is, of which rows, and where."""
    mean, low, high = (_x(field, title, domain) for field in ("value", "low", "high"))
    return [
        ("interval", "rule", "isValid(datum.low)", {"x": low, "x2": {"field": "high"}}),
        ("low", TICK, f"isValid(datum.low) && datum.low >= {domain[0]!r}", {"x": low}),
        ("high", TICK, f"isValid(datum.high) && datum.high <= {domain[1]!r}", {"x": high}),
        (
            "seeds",
            {"type": "circle", "yOffset": {"expr": f"0.28 * height / {len(names)}"}},
            f"datum.seed !== '{MEAN}'",
            {"x": mean},
        ),
        ("means", "point", f"datum.seed === '{MEAN}'", {"x": mean, "shape": recipe_shapes(names)}),
    ]


def _x(field: str, title: str, domain: tuple[float, float]) -> Spec:
    axis = {"tickCount": {"expr": "ceil(width / (4 * letter))"}, "labelOverlap": True, "labelSeparation": 8}
    scale = {"domain": list(domain), "nice": False, "zero": False, "clamp": True}
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": scale}


def _range(estimates: Sequence[Estimate], runs: Sequence[float], bounds: Bounds) -> tuple[float, float]:
    """The range of the axis: all means and runs, and as much of the intervals as leaves these readable."""
    points = [*(each.mean for each in estimates), *runs]
    low, high = min(points), max(points)
    span = high - low or abs(high) * 0.1 or 1.0
    ends = [end for each in estimates for end in each.ends(*bounds) or (each.mean, each.mean)]
    low, high = max(min(low, *ends), low - span / 2), min(max(high, *ends), high + span / 2)
    edge = 0.05 * (high - low or span)
    return max(low - edge, min(bounds[0], low)), min(high + edge, max(bounds[1], high))
