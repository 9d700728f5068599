"""Sweep: runs a study and compares what came out."""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mim import cli
from mim.config.recipes import find_file
from mim.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table


TEXT = """Runs what a study file names: recipes, a grid or list of settings, protocols, seeds. It ends with a table,
pictures and a comparison page. The same command continues a study that was interrupted, and prints the table of one
that is finished."""
EXAMPLES = ("configs/studies/digits/transfer.yaml", "studies/digits/mae_ratio --jobs 2 --output runs/ratios")

NAME, HEADING = 30, 16  # letters in a line


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode; PARTLY: some runs failed."""
    parser = cli.Parser("sweep", TEXT, EXAMPLES)
    parser.add_argument("study", metavar="STUDY", help="a study file, or a shipped one: studies/digits/transfer")
    parser.add_pairs("for every run whose task has that section")
    parser.add_argument("--output", type=Path, metavar="DIR", help="of the runs; default: runs/<name of the study>")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; default: %(default)s")
    parser.add_argument("--no-page", action="store_true", help="write no comparison page")
    return cli.run(parser, _sweep, arguments, "stopped: the same command continues the study")


def _sweep(args: argparse.Namespace) -> ExitCode:
    cli.check_folder("--output", args.output)
    file = find_file(args.study)
    output = args.output or Path("runs") / file.stem
    from rich.console import Console

    from mim.lab.comparison import compare, write
    from mim.lab.study import read_study, run_study

    study = read_study(file)
    results = run_study(study, output, args.overrides, args.jobs, lambda line: print(line, flush=True))
    if not results.trials:
        raise ValueError(f"no run of {file} ended well, see above")
    results.write(output)
    seeds = study.seeds
    over = f"mean ± 95% interval over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    console = Console()
    print(f"After the last epoch, {over}\n")
    for table in _tables(list(zip(*results.table(), strict=True)), console.width):
        console.print(table, "")
    print(f"Tables and pictures: {output}/results.md, results.json, *.png")
    if not args.no_page:
        print(f"Comparison: {write(compare([output], title=study.name), output / 'comparison')}")
    for name, reason in results.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return ExitCode.PARTLY if results.failed else ExitCode.DONE


def _tables(columns: list[tuple[str, ...]], width: int) -> "Iterator[Table]":
    """A study as tables of at most `width` letters, so that no number is broken.

    columns: the names first, then each metric below its heading.
    """
    from rich.console import Console

    wide = Console(width=10_000)  # measures what a table needs
    names, *others = columns
    while others:
        count = len(others)
        while count > 1 and wide.measure(_table([names, *others[:count]])).maximum > width:
            count -= 1
        yield _table([names, *others[:count]])
        others = others[count:]


def _table(columns: list[tuple[str, ...]]) -> "Table":
    from rich.text import Text

    from mim.lab.console import new_table

    names, *others = columns
    table = new_table(names[0], *(textwrap.fill(heading, HEADING) for heading, *_ in others))
    for name, *cells in zip(names[1:], *(column[1:] for column in others), strict=True):
        table.add_row(Text(textwrap.fill(name, NAME)), *map(Text, cells))
    return table
