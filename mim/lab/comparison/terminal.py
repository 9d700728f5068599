"""Terminal: a comparison as tables and lines, at whatever width there is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mim.lab.comparison.numbers import Cell, cells, chance, style_of
from mim.lab.comparison.result import Comparison

NAME = 32  # letters of an entry's name in a line
HEAD = 14  # of a heading in a line
TESTS = 12  # that are shown; the page shows all
UNBOUNDED = 10_000  # columns, to ask how wide a table would like to be
MANY = 6  # entries above which a row is an entry's
SECTIONS = (("Accuracy and loss", ("accuracy", "loss")), ("Cost of pretraining", ("cost",)))


@dataclass(frozen=True, slots=True)
class _Line:
    """A figure of every entry. head: its title and unit."""

    title: str
    head: str
    cells: list[Cell]
    note: str


def show(comparison: Comparison, console: Console) -> None:
    """Prints figures with intervals, paired tests, warnings and what was left out. Names are printed as they are."""
    several = any(len(entry.seeds) > 1 for entry in comparison.entries)
    for title, sections in SECTIONS:
        lines = _lines(comparison, sections)
        if not lines:
            continue
        _heading(console, title, "mean ± half the 95% interval over seeds" if several else "")
        for table in _tables(comparison, lines, console):
            console.print(table)
        _list(console, [f"{line.title}: {line.note}" for line in lines if line.note], "dim")
    if 0 < len(comparison.tests) <= TESTS:
        _heading(console, "Paired tests", "first minus second, seed against seed; p is not corrected for their number")
        console.print(_tests(comparison))
    for title, texts in (
        ("Warnings", comparison.warnings),
        ("Notes", comparison.notes),
        ("Left out", [f"{folder}: {reason}" for folder, reason in comparison.left_out]),
    ):
        if texts:
            _heading(console, title)
            _list(console, texts, "yellow" if title == "Warnings" else "")


def _lines(comparison: Comparison, sections: Sequence[str]) -> list[_Line]:
    found = []
    for column in comparison.columns:
        if column.section in sections:
            figures = [entry.figures.get(column.key) for entry in comparison.entries]
            style = style_of(column.unit, [figure for figure in figures if figure is not None])
            head = f"{column.title}, {style.unit}" if style.unit not in ("", column.title) else column.title
            found.append(
                _Line(column.title, _clean(head), cells(comparison.entries, figures, style, column.better), column.note)
            )
    return found


def _tables(comparison: Comparison, lines: list[_Line], console: Console) -> list[Table]:
    """A row a figure where that fits; else a row an entry, in as many tables as the width takes."""
    names = [_clean(entry.name) for entry in comparison.entries]
    if len(names) <= MANY:
        rows = [(line.head, [_cell(cell) for cell in line.cells]) for line in lines]
        table = _table([_wrapped(name, HEAD + 2) for name in names], rows, None)
        if _fits(table, console):
            return [table]
    tables: list[Table] = []
    held: list[_Line] = []
    for line in lines:
        if held and not _fits(_by_entry(names, [*held, line]), console):
            tables.append(_by_entry(names, held))
            held = []
        held.append(line)
    return [*tables, _by_entry(names, held)]


def _by_entry(names: list[str], lines: list[_Line]) -> Table:
    rows = [(name, [_cell(line.cells[place]) for line in lines]) for place, name in enumerate(names)]
    return _table([_wrapped(line.head, HEAD) for line in lines], rows, NAME)


def _table(heads: Iterable[str], rows: Iterable[tuple[str, list[Text]]], widest: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", max_width=widest, overflow="fold")
    for head in heads:
        table.add_column(Text(head), justify="right", vertical="bottom", no_wrap=True)
    for name, shown in rows:
        table.add_row(Text(name), *shown)
    return table


def _tests(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "first", "second"):
        table.add_column(head, overflow="fold")
    for head in ("difference", "p", "seeds"):
        table.add_column(head, justify="right", no_wrap=True)
    columns = {column.key: column for column in comparison.columns}
    for test in comparison.tests:
        column, found = columns[test.column], test.result.difference
        style = style_of(column.unit, [found])
        half = "" if found.half is None else f" ± {style.text(found.half)}"
        title = f"{column.title}, {style.unit}" if style.unit else column.title
        table.add_row(
            *(Text(_clean(word)) for word in (title, test.first, test.second)),
            *(f"{style.text(found.mean)}{half}", chance(test.result.p), str(len(test.seeds))),
        )
    return table


def _cell(cell: Cell) -> Text:
    runs = f" ({cell.runs})" if cell.runs is not None else ""
    return Text(f"{cell.text} {cell.half}{runs}" if cell.half else f"{cell.text}{runs}", "bold" if cell.best else "")


def _heading(console: Console, title: str, more: str = "") -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), (f"   {more}", "dim") if more else ""))


def _list(console: Console, texts: Iterable[str], style: str) -> None:
    for text in texts:
        console.print(Padding(Text(_clean(text), style), (0, 0, 0, 2)))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(wrap(text, width, break_long_words=True)) or text


def _fits(table: Table, console: Console) -> bool:
    unbounded = console.options.update_width(UNBOUNDED)
    return console.measure(table, options=unbounded).maximum <= console.width


def _clean(text: str) -> str:
    """One line without codes that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
