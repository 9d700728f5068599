"""Terminal: a benchmark as tables and lines."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mim.lab.benchmark import tables
from mim.lab.benchmark.data import LoadingOutcome
from mim.lab.benchmark.run import Outcome
from mim.lab.benchmark.tables import Table

NARROW = 9  # letters: a longer head takes two lines


def show(outcome: Outcome | LoadingOutcome, console: Console) -> None:
    """Prints all of it."""
    console.print()
    if isinstance(outcome, LoadingOutcome):
        console.print(Text.assemble((outcome.theme, "bold"), f", {outcome.machine}"))
        _print(tables.loading_table(outcome), console)
        console.print()
        _say(tables.loading_lines(outcome), console, "bold")
        console.print()
        _say(tables.loading_notes(outcome), console)
        return
    console.print(
        Text.assemble((outcome.theme, "bold"), f", {outcome.batches}, {outcome.precision}, {outcome.machine}")
    )
    for table in (tables.time_table(outcome), tables.work_table(outcome)):
        _print(table, console)
    found = tables.best_lines(outcome) + tables.ratio_lines(outcome)
    if found:
        console.print()
        _say(found, console, "bold")
    if outcome.profiles:
        _print(tables.kind_table(outcome.profiles), console)
        for profile in outcome.profiles:
            _print(tables.operator_table(profile), console)
    console.print()
    _say(tables.notes(outcome), console)


def _print(table: Table, console: Console) -> None:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for place, head in enumerate(table.heads):
        word = place < table.left
        justify: Any = "left" if word else "right"
        lines = head.replace(" ", "\n", 1) if len(head) > NARROW else head
        shown.add_column(Text(lines), justify=justify, no_wrap=not word, overflow="fold")  # words give way, no figure
    for row in table.rows:
        shown.add_row(*map(Text, row))
    console.print()
    console.print(Text(table.title, "bold"))
    console.print(shown)


def _say(lines: Iterable[str], console: Console, style: str = "") -> None:
    for line in lines:
        console.print(Padding(Text(line, style), (0, 0, 0, 2)))
