"""Compare: pretraining runs, and the probes and fine-tunings that came from them, in tables and on one page.

  python tools/compare.py RUN RUN ... [--output DIR] [--title TEXT] [--no-reconstructions]

RUN is a run folder, or a folder that holds some, such as the output of a study. Probes and fine-tunings are found
beside the runs by what their folders record of their start. Writes comparison.html (one file that needs no network),
comparison.csv (a row an entry) and comparison_runs.csv (a row a run). It changes nothing in the run folders.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from mim.engine.log import log_to_console
from mim.lab.comparison import compare, show, write


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder that holds some")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"), help="folder; default: %(default)s")
    parser.add_argument("--title", default="", help="of the page; default: the names of what is compared")
    parser.add_argument("--no-reconstructions", action="store_true", help="no pictures: quicker, and needs no data")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    args = parser.parse_args(arguments)
    log_to_console(False)  # configs are read again, and their warnings were heard when they ran
    command = shlex.join(["python", "tools/compare.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        comparison = compare(args.runs, title=args.title, reconstructions=not args.no_reconstructions, command=command)
        page = write(comparison, args.output)
    except ValueError as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(comparison, Console())
    print(f"\nPage: {page}   Tables: {args.output / 'comparison.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
