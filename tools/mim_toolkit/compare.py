"""Compare: run folders in tables and on one page."""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mim import cli
from mim.lab.layout import ENTRIES, FIGURES, TABLES

TEXT = """Compares pretraining runs, and the probes and fine-tunings that started from them, in tables and on one page.
These are looked for beside the runs. Writes comparison.html, which needs no network, comparison.csv (a row an entry),
comparison_runs.csv (a row a run), and each chart for a paper to figures/. Run folders are not changed."""
EXAMPLES = (
    "runs/mae-seed* runs/simmim-seed*",
    "runs/my_study --output runs/page --title 'Ratios of MAE'",
    "runs/my_study --format latex",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("compare", TEXT, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a folder of run folders")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/comparison"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--title", default="", help="title of the page; default: the names of the runs")
    parser.add_argument("--no-reconstructions", action="store_true", help="draw no pictures: faster, needs no data")
    parser.add_argument("--no-figures", action="store_true", help="no figures: faster, but the page saves no PDF")
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        choices=tuple(TABLES),
        help="also write the table of results for a paper, as comparison.tex or comparison.md; may be repeated",
    )
    words = cli.words(arguments)
    return cli.run(parser, partial(_compare, words), words)


def _compare(words: list[str], args: argparse.Namespace) -> None:
    cli.check_folder("--output", args.output)
    from rich.console import Console

    from mim.engine.log import log_to_console
    from mim.lab.comparison import compare, show, write

    log_to_console(False)  # configs are read again; their warnings were shown when they ran
    command = shlex.join([*cli.command_words("compare"), *words])
    comparison = compare(args.runs, title=args.title, reconstructions=not args.no_reconstructions, command=command)
    page = write(comparison, args.output, args.format, figures=not args.no_figures)
    show(comparison, Console())
    tables = [args.output / name for name in (ENTRIES, *(TABLES[each] for each in dict.fromkeys(args.format)))]
    figures = "" if args.no_figures else f"\nFigures: {args.output / FIGURES}"
    print(f"\nPage:    {page}{figures}\nTables:  {', '.join(map(str, tables))}")
