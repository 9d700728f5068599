"""Figure: a chart as a Vega-Lite specification and its rows, and the looks in which it is drawn."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Spec = dict[str, Any]  # in Vega-Lite
Row = dict[str, str | float | None]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MEAN = "mean"  # in place of a seed
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")  # #m0 to #m5 of the page
DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3], [4, 2])  # .d0 to .d4 of its style
COLOURS = ("#1f56c4", "#c25100", "#0b8a78", "#86267f", "#b38600", "#4a90ea", "#5a4a3c", "#e8368f")  # --s0 to --s7
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
POINTS_PER_INCH = 72  # a unit of a figure for papers is a point
LETTER = 0.52  # mean width of a letter, in sizes of the font
SYMBOL = 3.5  # width of a symbol of a legend with its gaps, in sizes of the font


@dataclass(frozen=True, slots=True)
class Look:
    """How figures are drawn in one place. Sizes are in points for papers, and in pixels on the page."""

    name: str
    width: float
    font: str
    size: float  # of all text
    ink: str
    soft: str  # colour of labels
    rule: str  # colour of axes
    grid: str
    colours: tuple[str, ...]
    background: str | None
    legend: bool = True  # the page has one of its own, with buttons

    @property
    def scale(self) -> float:
        """How lines and marks compare with those of a figure for papers."""
        return self.size / 8


PAPER_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # vl-convert brings the first, which is as wide as Arial
COLUMN = Look(
    "column", 3.3 * POINTS_PER_INCH, PAPER_FONT, 8, "#000", "#222", "#666", "#ddd", COLOURS, background="#fff"
)
WIDE = replace(COLUMN, name="wide", width=7.0 * POINTS_PER_INCH)  # both columns
PAPER = (COLUMN, WIDE)
PAGE = Look(
    "page",
    800,
    "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Liberation Sans, Arial, sans-serif",
    12,
    *("var(--ink)", "var(--soft)", "var(--rule)", "var(--line)"),
    colours=tuple(f"var(--s{number})" for number in range(len(COLOURS))),
    background=None,
    legend=False,
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart without a look.

    Its specification reads the rows of the data set `rows`. A row has a recipe, a seed (or `mean`), a value and what
    else `headings` names.
    """

    name: str  # of its files
    title: str
    text: str  # for those who cannot see it
    spec: Spec
    rows: tuple[Row, ...]
    headings: Mapping[str, str]  # of the columns of its CSV file, by key of the rows
    names: tuple[str, ...]  # of the recipes, for the legend; empty where it needs none

    def drawn(self, look: Look, height: float) -> Spec:
        """The whole specification in a look, without its rows. height: of the chart with its axes, without legend."""
        legend = _legend(self.names, look) if look.legend and len(self.names) > 1 else None
        encoding = dict(self.spec.get("encoding", {}))
        if legend:
            encoding["color"] = {**encoding["color"], "legend": legend}
        lines = -(-len(self.names) // legend["columns"]) if legend else 0
        return {
            "$schema": SCHEMA,
            **self.spec,
            "params": [*self.spec["params"], {"name": "letter", "value": look.size}],
            "encoding": encoding,
            "data": {"name": "rows"},
            "width": look.width,
            "height": height + lines * 1.6 * look.size,
            "autosize": {"type": "fit", "contains": "padding"},
            "config": _config(look, with_legend=legend is not None),
        }

    def with_rows(self, look: Look, height: float) -> Spec:
        """The specification with its rows."""
        return {**self.drawn(look, height), "data": {"name": "rows", "values": list(self.rows)}}


def as_text(content: Any) -> Any:
    """Texts, in mappings and lists too, without what UTF-8 or XML cannot hold; names of files may hold that."""
    if isinstance(content, str):
        return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", content.encode("utf-8", "replace").decode("utf-8"))
    if isinstance(content, Mapping):
        return {as_text(key): as_text(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return list(map(as_text, content))
    return content


def number_title(title: str, unit: str) -> str:
    """The title of an axis or a column."""
    return f"{title}, {unit}" if unit else title


def recipe_encoding(names: Sequence[str]) -> Spec:
    """The colour of each recipe."""
    return {"field": "recipe", "type": "nominal", "scale": {"domain": list(names)}}


def recipe_shapes(names: Sequence[str]) -> Spec:
    """The mark of each recipe."""
    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(names))]
    return {"field": "recipe", "type": "nominal", "scale": {"domain": list(names), "range": shapes}}


def recipe_dashes(names: Sequence[str]) -> Spec:
    """The dashes of each recipe's line, which tell apart those of one colour."""
    dashes = [DASHES[index // len(COLOURS) % len(DASHES)] for index in range(len(names))]
    return {"field": "recipe", "type": "nominal", "scale": {"domain": list(names), "range": dashes}}


def _legend(names: Iterable[str], look: Look) -> Spec:
    """Below the chart, in as many columns as the longest name leaves."""
    longest = max(len(name) for name in names) * LETTER * look.size
    columns = max(1, min(4, int(look.width / (longest + SYMBOL * look.size))))
    return {
        "title": None,
        "orient": "bottom",
        "columns": columns,
        "labelLimit": look.width / columns - SYMBOL * look.size,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 0,
        "symbolSize": 30 * look.scale**2,
    }


def _config(look: Look, with_legend: bool) -> Spec:
    axis = {
        "labelColor": look.soft,
        "titleColor": look.ink,
        "domainColor": look.rule,
        "tickColor": look.rule,
        "gridColor": look.grid,
        "gridWidth": 0.6 * look.scale,
        "domainWidth": 0.6 * look.scale,
        "tickWidth": 0.6 * look.scale,
        "labelFontSize": look.size,
        "titleFontSize": look.size,
        "titleFontWeight": "normal",
        "titlePadding": 0.5 * look.size,
    }
    return {
        "font": look.font,
        "background": look.background,
        "axis": axis,
        "axisY": {"domain": False, "ticks": False},
        "axisLeft": {"labelLimit": 0.36 * look.width},
        "axisX": {"tickSize": 3 * look.scale},
        "legend": {
            "disable": not with_legend,
            "labelFontSize": look.size,
            "labelColor": look.ink,
            "offset": 4,
            "rowPadding": 1,
        },
        "range": {"category": list(look.colours)},
        "view": {"stroke": None},
        "line": {"strokeWidth": 1.4 * look.scale, "strokeCap": "round", "strokeJoin": "round"},
        "style": {"seed": {"strokeWidth": 0.6 * look.scale}, "end": {"size": 5 * look.scale, "opacity": 1}},
        "point": {"size": 24 * look.scale**2, "filled": True, "opacity": 1},
        "circle": {"size": 5 * look.scale**2, "opacity": 0.75},
        "rule": {"strokeWidth": look.scale, "color": look.rule},
        "tick": {"thickness": look.scale},
        "aria": False,
    }
