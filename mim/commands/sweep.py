"""Sweep: runs a study and compares what came out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mim import cli
from mim.config.recipes import find_file
from mim.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

    from mim.lab.study import Results

TEXT = """Runs what a study file names: recipes, a grid or list of settings, protocols, seeds. It ends with a table,
pictures and a comparison page. The same command continues a study that was interrupted, and prints the table of one
that is finished."""
EXAMPLES = ("configs/studies/digits/transfer.yaml", "studies/digits/mae_ratio --jobs 2 --output runs/ratios")


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
    Console().print(_accuracies(results))
    print(f"Tables and pictures: {output}/results.md, results.json, *.png")
    if not args.no_page:
        print(f"Comparison: {write(compare([output], title=study.name), output / 'comparison')}")
    for name, reason in results.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return ExitCode.PARTLY if results.failed else ExitCode.DONE


def _accuracies(results: "Results") -> "Table":
    """The table of a study for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    seeds = results.study.seeds
    over = f"mean ± 95% interval over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    head, *rows = results.table()
    table = Table(title=f"After the last epoch, {over}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(head):
        table.add_column(Text(heading), justify="right" if column else "left", no_wrap=not column)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
