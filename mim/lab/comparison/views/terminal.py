"""A comparison as tables and lines for a terminal of any width."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim.lab.comparison.formatting import on_one_line
from mim.lab.comparison.result import Comparison
from mim.lab.comparison.views.numbers import (
    ANY,
    POINTS,
    Cell,
    bounds_of,
    cells,
    heading_text,
    interval_texts,
    p_text,
    style_of,
)
from mim.lab.console import new_table, print_heading, print_notes

NAME = 32  # letters of an entry's name in a line
HEADING = 14  # letters of a heading in a line
TESTS = 12  # tests that are printed; the page shows all
UNBOUNDED = 10_000  # columns, to measure the width that a table needs
MANY = 6  # entries above which each has a row
BEFORE = "Before you compare"
MORE = "More metrics of held-out labels are on the page and in comparison.csv."
INTERVALS = "mean, with its 95% interval over seeds; bold: the best beyond chance"
SECTIONS = (("Accuracy and loss", ("accuracy", "loss")), ("Cost of pretraining", ("cost",)))


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric of every entry."""

    title: str
    heading: str  # its title and unit
    cells: list[Text]
    note: str


def show(comparison: Comparison, console: Console) -> None:
    """Prints the seeds of each entry, metrics with intervals, paired tests, warnings and what was left out.

    A number in brackets after a metric says how many of the seeds have it, where not all have.
    """
    several = any(len(entry.seeds) > 1 for entry in comparison.entries)
    seeds = [_Metric("seeds", "seeds", [Text(str(len(entry.seeds))) for entry in comparison.entries], "")]
    for title, sections in SECTIONS:
        metrics = _metrics(comparison, sections)
        if not metrics:
            continue
        metrics, seeds = [*seeds, *metrics], []  # seeds in the first table alone
        print_heading(console, title, INTERVALS if several else "")
        for table in _tables(comparison, metrics, console):
            console.print(table)
        notes = [on_one_line(f"{metric.title}: {metric.note}") for metric in metrics if metric.note]
        if "accuracy" in sections and any(column.section == "more" for column in comparison.columns):
            notes.append(MORE)
        print_notes(console, notes, "dim")
    if 0 < len(comparison.tests) <= TESTS:
        remark = "first minus second, seed by seed; p is not corrected for the number of tests"
        print_heading(console, "Paired tests", remark)
        console.print(_tests(comparison))
    left_out = [f"{folder}: {reason}" for folder, reason in comparison.left_out]
    before = (*comparison.evidence, *comparison.warnings)
    lists = {BEFORE: before, "Notes": comparison.notes, "Left out": left_out}
    for title, texts in lists.items():
        if texts:
            print_heading(console, title)
            print_notes(console, map(on_one_line, texts), "yellow" if title == BEFORE else "")


def _metrics(comparison: Comparison, sections: Sequence[str]) -> list[_Metric]:
    metrics = []
    for column in comparison.columns:
        if column.section in sections:
            estimates = [entry.metrics.get(column.key) for entry in comparison.entries]
            style = style_of(column.unit, estimates, column.most)
            heading = heading_text(column.title, style.unit)
            best, bounds = comparison.best.get(column.key, ""), bounds_of(column, comparison.entries)
            texts = [_cell(cell) for cell in cells(comparison.entries, estimates, style, best, bounds)]
            metrics.append(_Metric(column.title, on_one_line(heading), texts, column.note))
    return metrics


def _tables(comparison: Comparison, metrics: list[_Metric], console: Console) -> list[Table]:
    """A row for each metric where that fits; else a row for each entry, in as many tables as the width needs."""
    names = [on_one_line(entry.name) for entry in comparison.entries]
    if len(names) <= MANY:
        rows = [(metric.heading, metric.cells) for metric in metrics]
        table = _table([_wrapped(name, HEADING + 2) for name in names], rows, None)
        if _fits(table, console):
            return [table]
    tables: list[Table] = []
    columns: list[_Metric] = []
    for metric in metrics:
        if columns and not _fits(_by_entry(names, [*columns, metric]), console):
            tables.append(_by_entry(names, columns))
            columns = []
        columns.append(metric)
    return [*tables, _by_entry(names, columns)]


def _by_entry(names: list[str], metrics: list[_Metric]) -> Table:
    rows = [(name, [metric.cells[index] for metric in metrics]) for index, name in enumerate(names)]
    return _table([_wrapped(metric.heading, HEADING) for metric in metrics], rows, NAME)


def _table(headings: Iterable[str], rows: Iterable[tuple[str, list[Text]]], widest: int | None) -> Table:
    table = new_table("", *headings)
    table.columns[0].max_width = widest
    for name, texts in rows:
        table.add_row(Text(name), *texts)
    return table


def _tests(comparison: Comparison) -> Table:
    table = new_table("", "first", "second", "difference", "p", "seeds", words=3)
    columns = {column.key: column for column in comparison.columns}
    for test in comparison.tests:
        column, difference = columns[test.column], test.result.difference
        style = style_of(column.unit, [difference], column.most)
        title = heading_text(column.title, style.unit)
        bounds = POINTS if column.unit == "%" else ANY
        table.add_row(
            *(Text(on_one_line(name)) for name in (title, test.first, test.second)),
            f"{style.text(difference.mean)} {interval_texts([difference], style, bounds)[0]}".strip(),
            *(p_text(test.result.p), str(len(test.seeds))),
        )
    return table


def _cell(cell: Cell) -> Text:
    runs = f" ({cell.runs})" if cell.runs is not None else ""
    return Text(f"{cell.text} {cell.half}{runs}" if cell.half else f"{cell.text}{runs}", "bold" if cell.best else "")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(wrap(text, width, break_long_words=True)) or text


def _fits(table: Table, console: Console) -> bool:
    unbounded = console.options.update_width(UNBOUNDED)
    return console.measure(table, options=unbounded).maximum <= console.width
