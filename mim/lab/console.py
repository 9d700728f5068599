"""Console: headings, tables and notes of the lab's reports. Numbers and paths are never cut or broken over lines."""

import io
from collections.abc import Iterable
from textwrap import TextWrapper

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def new_table(*heads: str, words: int = 1) -> Table:
    """An empty table. The first `words` columns hold words, which may wrap; the others hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index, head in enumerate(heads):
        text = index < words
        table.add_column(Text(head), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def print_heading(console: Console, title: str, remark: str = "") -> None:
    """Prints a blank line and a heading."""
    console.print()
    console.print(Text.assemble((title, "bold"), (f"   {remark}" if remark else "", "dim")))


def print_notes(console: Console, lines: Iterable[str], style: str = "", indent: str = "  ", first: str = "  ") -> None:
    """Prints each line as an indented paragraph. `first` starts the first line of each."""
    wrapper = TextWrapper(console.width, first, indent, break_long_words=False, break_on_hyphens=False)
    for line in lines:
        console.print(Text(wrapper.fill(line), style), soft_wrap=True)


def markdown(table: Table) -> str:
    """A table of new_table as markdown. It changes the table."""
    table.box, table.show_edge, table.pad_edge, table.collapse_padding = box.MARKDOWN, True, True, False
    for column in table.columns:
        column.header = Text(str(column.header).replace("\n", " "))
    console = Console(width=10_000, file=io.StringIO(), color_system=None)
    console.print(table)
    head, rule, *rows = (line.strip() for line in console.file.getvalue().strip().splitlines())  # type: ignore[attr-defined]
    marks = [f"{'-' * 3}{':' * (column.justify == 'right')}" for column in table.columns]
    assert set(rule) == set("|-")
    return "\n".join([head, f"|{'|'.join(marks)}|", *rows])


def number(value: float, digits: int = 4) -> str:
    """A number that is not negative, with this many digits, or as many as stand before the point."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def byte_unit(most: int) -> tuple[str, int]:
    """The unit in which sizes up to `most` bytes are shown, and its bytes."""
    return ("GiB", 2**30) if most >= 2**30 else ("MiB", 2**20)
