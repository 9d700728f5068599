"""A benchmark in a terminal: tables and lines."""

from rich.console import Console
from rich.text import Text

from mim.lab.benchmark import tables
from mim.lab.benchmark.loading import LoadingResult
from mim.lab.benchmark.run import BenchmarkResult
from mim.lab.console import print_heading, print_notes


def show(result: BenchmarkResult | LoadingResult, console: Console) -> None:
    """Prints a result."""
    profiles = {}
    if isinstance(result, LoadingResult):
        title, sections = str(result.machine), tables.loading_tables(result)
        lines, notes = tables.loading_lines(result), tables.loading_notes(result)
    else:
        title = f"{result.batches}, {result.precision}, {result.machine}"
        sections, profiles = tables.step_tables(result), tables.profile_tables(result.profiles)
        lines, notes = tables.step_lines(result), tables.step_notes(result)
    console.print()
    console.print(Text.assemble((result.theme, "bold"), f", {title}"))
    for name, table in sections.items():
        print_heading(console, name)
        console.print(table)
    console.print()
    print_notes(console, lines, "bold")
    for name, table in profiles.items():
        print_heading(console, name)
        console.print(table)
    console.print()
    print_notes(console, notes)
