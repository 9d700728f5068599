"""Evaluate: what a checkpoint is worth, without training. It changes nothing in the run folder.

  python tools/evaluate.py knn      RUN [--pool mean|class|both] [--k 20] [--temperature 0.07] [KEY VALUE ...]
  python tools/evaluate.py logistic RUN [--pool ...] [--c 1.0] [KEY VALUE ...]
  python tools/evaluate.py classify RUN [KEY VALUE ...]
  python tools/evaluate.py features RUN --output FILE.npz [--pool ...] [KEY VALUE ...]

RUN is a run folder (its best checkpoint, or its last) or a checkpoint file. KEY VALUE pairs change its config, such as
DATA.path. Runs on several processes under torchrun as well.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mim import evaluate
from mim.data.sources.subset import LabelSettings
from mim.engine.log import log_to_console
from mim.errors import DataLost, RunStopped
from mim.io.files import write_json


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    args = _parser().parse_intermixed_args(arguments)
    main_rank = int(os.environ.get("RANK", 0)) == 0
    log_to_console(main_rank)
    try:
        found = _evaluate(args)
    except (ValueError, RunStopped, DataLost) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    if main_rank:
        Console().print(_table(found))
        if args.json:
            write_json(args.json, found)
    return 0


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    if args.what == "classify":
        return evaluate.classify(args.run, args.overrides)
    if args.what == "features":
        if args.output is None:
            raise ValueError("features: name the file to write with --output FILE.npz")
        return evaluate.features(args.run, args.overrides, args.pool, args.output)
    labels = LabelSettings(share=args.share, per_class=args.per_class, seed=args.label_seed)
    if args.what == "knn":
        return evaluate.knn(args.run, args.overrides, args.pool, args.k, args.temperature, labels)
    return evaluate.logistic(args.run, args.overrides, args.pool, args.c, labels)


def _table(found: dict[str, Any]) -> Table:
    """A row a figure; classes, where they are told apart, below."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.items():
        if isinstance(value, dict):
            for inner, share in value.items():
                table.add_row(f"  {inner}", f"{share:.4f}")
        else:
            shown = f"{value:.4f}" if isinstance(value, float) and "/" in name else str(value)
            table.add_row(name, shown)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["knn", "logistic", "classify", "features"])
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as DATA.path /data/plates")
    parser.add_argument("--pool", choices=["mean", "class", "both"], default="mean", help="features of an image")
    parser.add_argument("--k", type=int, default=20, help="knn: neighbours that vote")
    parser.add_argument("--temperature", type=float, default=0.07, help="knn: of the vote")
    parser.add_argument("--c", type=float, default=1.0, help="logistic: inverse strength of the penalty")
    parser.add_argument("--share", type=float, default=1.0, help="knn, logistic: of the labelled training images")
    parser.add_argument("--per-class", type=int, default=0, help="knn, logistic: labelled images a class instead")
    parser.add_argument("--label-seed", type=int, default=0, help="of that choice")
    parser.add_argument("--output", type=Path, help="features: the .npz file to write")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
