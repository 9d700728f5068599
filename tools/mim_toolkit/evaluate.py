"""Evaluate: what a checkpoint is worth, without training."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim import cli
from mim.config.schema import ORDER, TOP

if TYPE_CHECKING:
    from rich.table import Table

TEXT = """Evaluates a checkpoint without training, on one process or on several under torchrun. The run folder is not
changed.

  knn       the nearest training images vote on the class of a held-out one
  logistic  logistic regression on features of the encoder
  classify  accuracy of a fine-tuned or probed classifier, by names of classes
  features  writes features, labels and names of all images to a .npz file
  predict   writes class and probabilities of any images (files, folders, .txt
            lists) to a .csv or .jsonl file; IMAGES come before KEY VALUE"""
PATHS = ("checkpoint", "file")  # metrics that a table could break
EXAMPLES = (
    "knn runs/mae --k 10",
    "classify runs/finetune DATA.path /data/plates",
    "features runs/mae --output f.npz",
    "predict runs/finetune cat.jpg photos/ --output predictions.csv",
)
ENDINGS = {"features": (".npz",), "predict": (".csv", ".jsonl")}  # of --output


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("evaluate", TEXT, EXAMPLES)
    parser.add_argument("what", choices=["knn", "logistic", "classify", "features", "predict"], help="see above")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its best or last checkpoint) or file")
    parser.add_pairs("keys of its config, such as DATA.path /data; predict: IMAGES, then such keys")
    parser.add_argument(
        "--pool", choices=["mean", "class", "both"], default="mean", help="features of an image; default: %(default)s"
    )
    parser.add_argument(
        "--k", type=int, metavar="N", help="knn: neighbours that vote; default: the run's EVALUATE.knn, or 20"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.07, metavar="T", help="knn: of the vote; default: %(default)s"
    )
    parser.add_argument(
        "--c", type=float, default=1.0, metavar="C", help="logistic: inverse penalty; default: %(default)s"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="S", help="knn, logistic: share of the labels; default: %(default)s"
    )
    parser.add_argument("--per-class", type=int, default=0, metavar="N", help="knn, logistic: N labels a class instead")
    parser.add_argument(
        "--label-seed", type=int, default=0, metavar="N", help="seed of the choice of labels; default: %(default)s"
    )
    parser.add_argument(
        "--setting",
        metavar="TITLE",
        help="classify, predict: a setting of a probe, such as 'rate 3'; default: the one that the run chose",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="features, predict: the file to write")
    parser.add_json()
    return cli.run(parser, _evaluate, arguments)


def _evaluate(args: argparse.Namespace) -> None:
    _check_output(args.what, args.output)
    from rich.console import Console

    from mim.io.files import write_json

    metrics = _metrics(args)
    if int(os.environ.get("RANK", 0)):
        return
    Console().print(_table(metrics))
    for name in PATHS:
        if name in metrics:
            print(f"{name}: {metrics[name]}")
    if args.json:
        write_json(args.json, metrics)


def _metrics(args: argparse.Namespace) -> dict[str, Any]:
    from mim import evaluate
    from mim.data.settings import LabelSettings

    labels = LabelSettings(share=args.share, per_class=args.per_class, seed=args.label_seed)
    if args.what == "classify":
        return evaluate.classify(args.run, args.overrides, args.setting)
    if args.what == "predict":
        images, pairs = _images_and_pairs(args.overrides)
        return evaluate.predict(args.run, images, args.output, pairs, args.setting)
    if args.what == "features":
        return evaluate.features(args.run, args.overrides, args.pool, args.output)
    if args.what == "knn":
        return evaluate.knn(args.run, args.overrides, args.pool, args.k, args.temperature, labels)
    return evaluate.logistic(args.run, args.overrides, args.pool, args.c, labels)


def _check_output(what: str, output: Path | None) -> None:
    """Raises ValueError where --output is missing, or has an ending of another kind of file."""
    endings = ENDINGS.get(what, ())
    if endings and (output is None or output.suffix.lower() not in endings):
        value = f"--output is {output}: " if output else ""
        raise ValueError(f"{value}{what} writes a file: name it with --output FILE{' or FILE'.join(endings)}")


def _images_and_pairs(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """IMAGES, and the KEY VALUE pairs behind them. A file that is named like a key is written ./DATA.png."""
    index = next((index for index, word in enumerate(words) if _is_key(word)), len(words))
    if not index:
        raise ValueError("predict: name images behind RUN: files, folders or a .txt list, and keys behind them")
    return [Path(word) for word in words[:index]], list(words[index:])


def _is_key(word: str) -> bool:
    section, point, _ = word.partition(".")
    return section in ORDER if point else word in TOP


def _text(name: str, value: object) -> str:
    if isinstance(value, float) and "/" in name:
        return f"{value:.4f}"
    return f"{value:,}" if type(value) is int else str(value)


def _table(metrics: dict[str, Any]) -> "Table":
    """A row a metric, and a row for each class where there are some; paths are not in it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in metrics.items():
        if isinstance(value, dict):
            table.add_row(name, "")
            for label, share in value.items():
                table.add_row(f"  {label}", f"{share:.4f}" if isinstance(share, float) else f"{share:,}")
        elif name not in PATHS and not isinstance(value, list):  # the log names files
            table.add_row(name, _text(name, value))
    return table
