"""Transfer: pretrains, then fine-tunes and probes what a study file names, and ends in a table.

  python tools/transfer.py configs/studies/digits.yaml [--output runs/digits] [KEY VALUE ...]

The same command goes on where it was interrupted, and prints the table of a study that is finished.
KEY VALUE pairs go to every run whose task has that section, such as DATA.path.
"""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mim.engine.distributed import RunStopped
from mim.transfer import Results, in_words, read_study, run_study


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 finished, 2 something for the user to mend, 3 stopped because training could not go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study, such as configs/studies/digits.yaml")
    parser.add_argument("--output", type=Path, help="folder of the run folders; default: runs/<name of the study>")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as DATA.path /data/cifar10")
    args = parser.parse_intermixed_args(arguments)
    output = args.output or Path("runs") / args.study.stem
    try:
        results = run_study(read_study(args.study), output, args.overrides, lambda line: print(line, flush=True))
    except (ValueError, RunStopped) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, RunStopped) else 2
    console = Console()
    if results.pretraining:
        console.print(costs(results))
    console.print(accuracies(results))
    print(f"Tables: {output}/results.md and results.json   Curves: tensorboard --logdir {output}")
    return 0


def accuracies(results: Results) -> Table:
    """Held-out top-1 in percent: a row a protocol, a column a start."""
    seeds = results.study.seeds
    over = f"mean and standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    table = _table(f"Held-out accuracy after the last epoch, %, {over}", list(results.study.starts))
    for protocol in results.study.protocols:
        table.add_row(protocol, *(in_words(results.accuracies(protocol, start)) for start in results.study.starts))
    return table


def costs(results: Results) -> Table:
    """What each pretraining took: a row a start."""
    table = _table("Pretraining", ["epochs", "images seen", "images/s", "seconds"])
    for start in dict.fromkeys(start for start, _ in results.pretraining):
        figures = (results.mean_of(start, name) for name in ("epochs", "images_seen", "images_per_s", "seconds"))
        table.add_row(start, *(f"{figure:,.0f}" for figure in figures))
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    sys.exit(main())
