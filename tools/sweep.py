"""Sweep: runs what a study file names - recipes, a grid or list of settings, protocols, seeds - and compares it.

  python tools/sweep.py configs/studies/digits/simmim_masks.yaml [--output DIR] [--jobs 2] [KEY VALUE ...]

The same command goes on where it was interrupted, and prints the table of a study that is finished. It ends with a
table, pictures and a comparison page. KEY VALUE pairs go to every run whose task has that section, such as DATA.path.
"""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim.errors import RunStopped
from mim.lab.comparison import compare, write
from mim.lab.study import Results, read_study, run_study


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 finished, 1 some runs failed, 2 something for the user to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study, such as configs/studies/digits/transfer.yaml")
    parser.add_argument("--output", type=Path, help="folder of the run folders; default: runs/<name of the study>")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share cores, and spread over GPUs")
    parser.add_argument("--no-page", action="store_true", help="leave out the comparison page")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as DATA.path /data/cifar10")
    args = parser.parse_intermixed_args(arguments)
    output = args.output or Path("runs") / args.study.stem
    try:
        study = read_study(args.study)
        results = run_study(study, output, args.overrides, args.jobs, lambda line: print(line, flush=True))
        if not results.trials:
            raise ValueError(f"no run of {args.study} ended well, see above")
        results.write(output)
        Console().print(accuracies(results))
        print(f"Tables and pictures: {output}/results.md, results.json, *.png")
        if not args.no_page:
            page = write(compare([output], title=study.name), output / "comparison")
            print(f"Comparison: {page}")
    except (ValueError, RunStopped) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in results.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if results.failed else 0


def accuracies(results: Results) -> Table:
    """The study's table for a terminal."""
    seeds = results.study.seeds
    over = f"mean ± 95% interval over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    head, *rows = results.table()
    table = Table(title=f"After the last epoch, {over}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(head):
        table.add_column(Text(heading), justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


if __name__ == "__main__":
    sys.exit(main())
