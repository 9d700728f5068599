"""The comparison page: one HTML file that holds all it shows and needs no network."""

import gzip
import io
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mim.lab.comparison.formatting import capital
from mim.lab.comparison.result import Better, Comparison, PairedTest, Role, Sheet
from mim.lab.comparison.views.figures.all import figures_of
from mim.lab.comparison.views.figures.figure import PAGE, PAPER_FONT
from mim.lab.comparison.views.figures.files import drawings_of, library
from mim.lab.comparison.views.numbers import (
    ANY,
    POINTS,
    Cell,
    bounds_of,
    cells,
    interval_texts,
    p_text,
    short,
    style_of,
)
from mim.lab.comparison.views.tables import EntryTable, Heading, result_table, table_of

AXES = {"images_seen": "Images seen", "flops": "FLOPs", "seconds": "Seconds"}
UNITS = {"images_seen": "", "flops": "FLOP", "seconds": "s"}  # of the axes, as numbers.py knows them
ROLES: dict[Role, tuple[str, str]] = {
    "method": ("Method", "what the methods decide"),
    "fairness": ("Should be equal", "for a comparison of methods alone"),
    "other": ("Other", ""),
}
SCRIPTS = ("figures.js", "comparison.js")
STATIC = replace(
    PAGE, width=400, font=PAPER_FONT, size=12.5
)  # of figures that need no script; the style stretches them
MANY = 6  # entries above which a table of settings has a row for each entry


def render(comparison: Comparison, pdfs: Mapping[str, Mapping[str, bytes]] | None = None) -> str:
    """The page as HTML. Its tables, dots, settings and pictures need no JavaScript.

    Args:
        comparison: what is shown.
        pdfs: of its figures, by name of the figure, then by name of the look; without them no button saves a PDF.

    Raises ValueError for a curve or a test of an unknown entry or column, and for a sheet that is no PNG file; OSError
    where figures cannot be drawn.
    """
    loader = PackageLoader("mim.lab.comparison.views", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(capital=capital, unusual=_unusual)
    style, *scripts = (
        loader.get_source(environment, name)[0].replace("\r\n", "\n") for name in ("comparison.css", *SCRIPTS)
    )
    script = "".join(scripts)
    figures = figures_of(comparison)
    drawing = library() if figures.all else ""
    static = drawings_of([figures.drawn(figure, STATIC) for figure in figures.dots])
    entries, results = comparison.entries, result_table(comparison, "accuracy", "loss")
    of_role = {role: [setting for setting in comparison.settings if setting.role == role] for role in ROLES}
    html = environment.get_template("comparison.html").render(
        page=comparison,
        index_of={entry.name: index for index, entry in enumerate(entries)},
        runs=sum(len(entry.folders) for entry in entries),
        several=any(len(entry.seeds) > 1 for entry in entries),
        seeds=_seeds(comparison),
        results=results,
        best=results is not None and any(cell.best for row in results.rows for cell in row),
        best_budget=any(budget.best for budget in comparison.budgets),
        compared=len(entries) > 1,
        cost=result_table(comparison, "cost"),
        more=_more(comparison),
        plots=[(figure, Markup(drawing.svg)) for figure, drawing in zip(figures.dots, static, strict=True)],  # noqa: S704
        figures=_packed(figures.page_data(pdfs or {})) if figures.all else "",
        library=_packed(drawing),
        kinds=("svg", *(("pdf",) if pdfs else ()), "png", "csv"),
        axes=[(axis, title) for axis, title in AXES.items() if any(axis == each.axis for each in figures.curves)],
        budgets=_budgets(comparison),
        settings=[(role, *texts, of_role[role]) for role, texts in ROLES.items() if of_role[role]],
        row_per_entry=len(entries) > max(MANY, len(comparison.settings)),
        tests=_tests(comparison),
        sheets=[(sheet, *_picture(sheet)) for sheet in comparison.sheets],
        style=Markup(style),  # noqa: S704 - our own files, and the policy names their hashes
        script=Markup(script),  # noqa: S704
        hashes={"style": _hash(style), "script": _hash(script), "library": _hash(drawing)},
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # names of files may hold what UTF-8 cannot


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return "sha256-" + b64encode(sha256(text.encode("utf-8")).digest()).decode("ascii")


def _packed(text: str) -> str:
    """A text for figures.js, which unpacks it; the same for the same text."""
    return b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")


def _seeds(comparison: Comparison) -> str:
    """The seeds as text where all entries have the same; empty where they differ."""
    first, *others = {entry.seeds for entry in comparison.entries} or {()}
    return "" if others or not first else f"seed{'s' if len(first) > 1 else ''} {', '.join(map(str, first))}"


def _more(comparison: Comparison) -> list[tuple[str, EntryTable]]:
    """A table for each protocol, with its further metrics."""
    further = [column for column in comparison.columns if column.section == "more"]
    tables = []
    for group in dict.fromkeys(column.group for column in further):
        of_group = [column for column in further if column.group == group]
        table = table_of(comparison, [replace(each, title=each.title.removeprefix(f"{group}, ")) for each in of_group])
        tables += [(group, table)] if table else []
    return tables


def _budgets(comparison: Comparison) -> list[tuple[str, EntryTable]]:
    """A table for each metric, with a column for each budget, grouped by axis."""
    columns = {column.key: column for column in comparison.columns}
    entries, names = comparison.entries, [entry.name for entry in comparison.entries]
    tables = []
    for metric in dict.fromkeys(budget.metric for budget in comparison.budgets if budget.estimates):
        budgets = [each for each in comparison.budgets if each.metric == metric and each.estimates]
        budgets.sort(key=lambda budget: list(AXES).index(budget.axis))
        column = columns.get(metric)
        better: Better = column.better if column else "neither"
        style = style_of(column.unit if column else " ", [each for b in budgets for each in b.estimates.values()])
        bounds = bounds_of(column, entries) if column else ANY
        headings = [Heading(short(budget.limit, UNITS[budget.axis]), "", better) for budget in budgets]
        filled = [
            cells(entries, [each.estimates.get(name) for name in names], style, each.best, bounds) for each in budgets
        ]
        groups = [(AXES[axis], span) for axis, span in Counter(budget.axis for budget in budgets).items()]
        table = EntryTable(headings, list(zip(*filled, strict=True)), groups=groups)
        tables.append((comparison.metric_names.get(metric, metric), table))
    return tables


def _unusual(values: Sequence[str]) -> list[bool]:
    """Which values differ from what more than half of the entries have; none where no value is that common."""
    common, count = Counter(values).most_common(1)[0]
    return [2 * count > len(values) and value != common for value in values]


def _tests(comparison: Comparison) -> list[tuple[PairedTest, Heading, Cell, str]]:
    """Each test with its column, the difference in the column's unit, and p."""
    columns = {column.key: column for column in comparison.columns}
    names = {entry.name for entry in comparison.entries}
    rows = []
    for test in comparison.tests:
        if test.column not in columns or not {test.first, test.second} <= names:
            names_of_test = f"{test.first!r} and {test.second!r} in column {test.column!r}"
            raise ValueError(f"a test of {names_of_test} has no place here")
        column, difference = columns[test.column], test.result.difference
        alike = [other.result.difference for other in comparison.tests if columns[other.column].unit == column.unit]
        style = style_of(column.unit, alike, column.most)
        text = ("+" if difference.mean > 0 else "") + style.text(difference.mean)
        bounds = POINTS if column.unit == "%" else ANY
        cell = Cell(text, interval_texts([difference], style, bounds)[0], order=difference.mean)
        unit = "points" if style.unit == "%" else style.unit
        rows.append((test, Heading(column.title, unit, column.better), cell, p_text(test.result.p)))
    return rows


def _picture(sheet: Sheet) -> tuple[str, tuple[int, int]]:
    """The picture as a data URI, and its width and height in pixels."""
    try:
        size = Image.open(io.BytesIO(sheet.png), formats=["PNG"]).size
    except OSError as error:
        raise ValueError(f"the picture of sheet {sheet.title!r} is not a PNG file") from error
    return "data:image/png;base64," + b64encode(sheet.png).decode("ascii"), size
