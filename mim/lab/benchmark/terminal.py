"""A benchmark in a terminal: tables and lines."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim.lab.benchmark.loading import LoadingResult
from mim.lab.benchmark.run import BenchmarkResult
from mim.lab.benchmark.tables import ResultView
from mim.lab.console import print_heading, print_notes


def show(result: BenchmarkResult | LoadingResult, console: Console) -> None:
    """Prints a result."""
    view = ResultView.of(result)
    console.print()
    console.print(Text.assemble((result.theme, "bold"), f", {view.title}, {result.machine}"))
    _print_tables(view.tables, console)
    console.print()
    print_notes(console, view.lines, "bold")
    _print_tables(view.profiles, console)
    console.print()
    print_notes(console, view.notes)


def _print_tables(tables: dict[str, Table], console: Console) -> None:
    for title, table in tables.items():
        print_heading(console, title)
        console.print(table)
