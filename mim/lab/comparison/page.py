"""The comparison page: one HTML file that holds all it shows, from a Comparison."""

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mim.lab.comparison.dot_plots import plots
from mim.lab.comparison.numbers import Better, Cell, cells, chance, short, style_of, styles_of
from mim.lab.comparison.result import Budget, Comparison, Curve, Kind, PairedTest, Sheet
from mim.ops.intervals import Estimate

AXES = {"images_seen": "Images seen", "flops": "FLOPs", "seconds": "Seconds"}
UNITS = {"images_seen": "", "flops": "FLOP", "seconds": "s"}  # of the axes, as numbers.py knows them
KINDS: dict[Kind, tuple[str, str]] = {
    "method": ("Method", "what the methods decide"),
    "fairness": ("Should be equal", "for a comparison of methods alone"),
    "other": ("Other", ""),
}
SCRIPTS = ("reckon.js", "curves.js", "comparison.js")
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
SIGNIFICANT = 7  # digits of the curves' values in the page
MANY = 6  # entries above which a table of settings has a row an entry


@dataclass(frozen=True, slots=True)
class Head:
    """The heading of a column of figures. mark: number of its note, 0 where it has none."""

    title: str
    unit: str
    better: Better
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a row an entry. groups: headings above headings, with how many each spans."""

    heads: list[Head]
    rows: list[list[Cell]]
    notes: list[str]
    groups: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Row:
    """A setting and its values. odd: which differ from what most entries have."""

    key: str
    values: tuple[str, ...]
    odd: list[bool]


@dataclass(frozen=True, slots=True)
class Part:
    """Settings of one kind."""

    title: str
    lead: str
    kind: Kind
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings that differ. turned: a row an entry rather than a row a setting."""

    parts: list[Part]
    turned: bool


def render(comparison: Comparison) -> str:
    """The page as HTML. It loads nothing, and its tables, settings and pictures need no JavaScript.

    Raises ValueError where a curve or a test names an entry or column that is not in the comparison.
    """
    environment = Environment(
        loader=PackageLoader("mim.pictures", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["capital"] = _capital
    style = _source(environment, "comparison.css")
    script = "".join(_source(environment, name) for name in SCRIPTS)
    results = _table(comparison, "accuracy", "loss")
    html = environment.get_template("comparison.html").render(
        page=comparison,
        place={entry.name: place for place, entry in enumerate(comparison.entries)},
        runs=sum(len(entry.folders) for entry in comparison.entries),
        several=any(len(entry.seeds) > 1 for entry in comparison.entries),
        seeds=_seeds(comparison),
        results=results,
        best=results is not None and any(cell.best for row in results.rows for cell in row),
        cost=_table(comparison, "cost"),
        plots=plots(comparison),
        curves=_json(_curves(comparison)),
        axes=[(axis, title) for axis, title in AXES.items() if any(axis in curve.at for curve in comparison.curves)],
        budgets=_budgets(comparison),
        settings=_settings(comparison),
        tests=_tests(comparison),
        sheets=[(sheet, *_picture(sheet)) for sheet in comparison.sheets],
        style=Markup(style),  # noqa: S704 - our own files, and the policy names their hashes
        script=Markup(script),  # noqa: S704
        hashes={"style": _hash(style), "script": _hash(script)},
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # names of files may hold what UTF-8 cannot


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].replace("\r\n", "\n")


def _capital(text: str) -> str:
    """The text as a heading; names such as kNN stay as they are."""
    return text[:1].upper() + text[1:] if text[:2].islower() else text


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return "sha256-" + b64encode(sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(value: object) -> Markup:
    """JSON that may stand in a script element: ASCII, and no letter that HTML reads."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - nothing is left to escape


def _seeds(comparison: Comparison) -> str:
    """The seeds in words where all entries have the same; empty where they differ."""
    first, *others = {entry.seeds for entry in comparison.entries} or {()}
    return "" if others or not first else f"seed{'s' if len(first) > 1 else ''} {', '.join(map(str, first))}"


def _table(comparison: Comparison, *sections: str) -> Table | None:
    columns = [column for section in sections for column in comparison.columns if column.section == section]
    styles = styles_of(columns, comparison.entries)
    heads, shown, notes = [], [], []
    for column in columns:
        figures = [entry.figures.get(column.key) for entry in comparison.entries]
        if not any(figures):
            continue
        if column.note and column.note not in notes:
            notes.append(column.note)
        style = styles[column.key]
        mark = notes.index(column.note) + 1 if column.note else 0
        heads.append(Head(column.title, style.unit, column.better, mark))
        shown.append(cells(comparison.entries, figures, style, column.better))
    return Table(heads, [list(row) for row in zip(*shown, strict=True)], notes, []) if heads else None


def _budgets(comparison: Comparison) -> list[tuple[str, Table]]:
    """A table a quantity, a column a budget, grouped by what the budget is of."""
    known = {column.key: column for column in comparison.columns}
    tables = []
    for quantity in dict.fromkeys(budget.quantity for budget in comparison.budgets if budget.reached):
        ours = [
            found for axis in AXES for found in comparison.budgets if (found.axis, found.quantity) == (axis, quantity)
        ]
        ours = [budget for budget in ours if budget.reached]
        column = known.get(quantity)
        better: Better = column.better if column else "neither"
        style = style_of(
            column.unit if column else " ", [found for budget in ours for found in budget.reached.values()]
        )
        heads = [Head(short(budget.limit, UNITS[budget.axis]), "", better) for budget in ours]
        columns = [cells(comparison.entries, _reached(comparison, budget), style, better) for budget in ours]
        spans = Counter(budget.axis for budget in ours)
        name = comparison.names_of_quantities.get(quantity, quantity)
        groups = [(AXES[axis], span) for axis, span in spans.items()]
        tables.append((name, Table(heads, [list(row) for row in zip(*columns, strict=True)], [], groups)))
    return tables


def _reached(comparison: Comparison, budget: Budget) -> list[Estimate | None]:
    return [budget.reached.get(entry.name) for entry in comparison.entries]


def _curves(comparison: Comparison) -> dict[str, object]:
    """What curves.js draws. Entries and quantities by number; a value that is not finite is null."""
    place = {entry.name: number for number, entry in enumerate(comparison.entries)}
    quantities = list(dict.fromkeys(curve.quantity for curve in comparison.curves))
    return {
        "entries": [entry.name for entry in comparison.entries],
        "quantities": [_capital(comparison.names_of_quantities.get(quantity, quantity)) for quantity in quantities],
        "curves": [_curve(curve, place, quantities) for curve in comparison.curves],
    }


def _curve(curve: Curve, place: dict[str, int], quantities: list[str]) -> dict[str, object]:
    if curve.entry not in place:
        raise ValueError(f"a curve belongs to entry {curve.entry!r}, which is not compared; there are {list(place)}")
    return {
        "entry": place[curve.entry],
        "seed": curve.seed,
        "quantity": quantities.index(curve.quantity),
        "at": {axis: _numbers(places) for axis, places in curve.at.items()},
        "values": _numbers(curve.values),
    }


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None for value in values]


def _settings(comparison: Comparison) -> Settings | None:
    parts = []
    for kind, (title, lead) in KINDS.items():
        ours = [setting for setting in comparison.settings if setting.kind == kind]
        if ours:
            rows = [Row(setting.key, setting.values, _odd(setting.values)) for setting in ours]
            parts.append(Part(title, lead, kind, rows))
    turned = len(comparison.entries) > max(MANY, len(comparison.settings))
    return Settings(parts, turned) if parts else None


def _odd(values: Sequence[str]) -> list[bool]:
    """Which values differ from what more than half of the entries have; none where no value is that common."""
    value, count = Counter(values).most_common(1)[0]
    return [2 * count > len(values) and other != value for other in values]


def _tests(comparison: Comparison) -> list[tuple[PairedTest, Head, Cell, str]]:
    """Test by test: its column, the difference in the column's unit, and p."""
    columns = {column.key: column for column in comparison.columns}
    names = {entry.name for entry in comparison.entries}
    shown = []
    for test in comparison.tests:
        if test.column not in columns or not {test.first, test.second} <= names:
            raise ValueError(
                f"a test of {test.first!r} and {test.second!r} in column {test.column!r} has no place here"
            )
        column, found = columns[test.column], test.result.difference
        alike = [other.result.difference for other in comparison.tests if columns[other.column].unit == column.unit]
        style = style_of(column.unit, alike)
        half = "" if found.half is None else f"± {style.text(found.half)}"
        cell = Cell(("+" if found.mean > 0 else "") + style.text(found.mean), half, order=found.mean)
        unit = "points" if style.unit == "%" else style.unit
        shown.append((test, Head(column.title, unit, column.better), cell, chance(test.result.p)))
    return shown


def _picture(sheet: Sheet) -> tuple[str, tuple[int, int]]:
    """The picture as a data URI, and its width and height in pixels.

    Raises ValueError where it is no PNG.
    """
    if not sheet.png.startswith(PNG_HEAD) or len(sheet.png) < 24:
        raise ValueError(f"the picture of sheet {sheet.title!r} is not a PNG file")
    size = (int.from_bytes(sheet.png[16:20], "big"), int.from_bytes(sheet.png[20:24], "big"))
    return "data:image/png;base64," + b64encode(sheet.png).decode("ascii"), size
