"""Evaluate: what a checkpoint is worth, without training."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim import cli
from mim.config.schema import ORDER, TOP
from mim.metric_keys import CORRUPTIONS_BY_NAME, interval

if TYPE_CHECKING:
    from rich.table import Table

TEXT = """Evaluates a checkpoint without training, on one process or on several under torchrun. The run folder is not
changed.

  knn       the nearest training images vote on the class of a held-out one
  logistic  logistic regression on features of the encoder
  classify  metrics of a fine-tuned or probed readout on held-out images, by
            names of classes or of columns of numbers
  features  writes features, labels and names of all images to a .npz file
  predict   writes classes and probabilities, or numbers, of any images (files,
            folders, .txt lists) to a .csv or .jsonl file, and masks as
            pictures into a folder; IMAGES come before KEY VALUE
  dense     without labels, sheets of what its patches hold: components,
            foreground, attention, of held-out images or of IMAGES; where
            images have masks, also mIoU of kNN and logistic regression
  retrieval the nearest training images of held-out images or of IMAGES, as a
            sheet; where images have classes, also mAP and recall
  corruptions  accuracy of a classifier on held-out images under ImageNet-C's
            corruptions, with a curve of each; needs mim-toolkit[corruptions]"""
PATHS = ("checkpoint", "file")  # metrics that a table could break
EXAMPLES = (
    "knn runs/mae --k 10",
    "classify runs/finetune DATA.path /data/plates",
    "features runs/mae --output f.npz",
    "predict runs/finetune cat.jpg photos/ --output predictions.csv",
    "dense runs/mae photos/ --output pictures",
    "retrieval runs/mae --k 20 --output pictures",
    "corruptions runs/finetune --only noise,fog --images 1000",
)
WHAT = ("knn", "logistic", "classify", "features", "predict", "dense", "retrieval", "corruptions")
ENDINGS = {"features": (".npz",), "predict": (".csv", ".jsonl")}  # of --output


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("evaluate", TEXT, EXAMPLES)
    parser.add_argument("what", choices=WHAT, metavar="WHAT", help="one of the words above")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its best or last checkpoint) or file")
    parser.add_pairs("keys of its config, such as DATA.path /data; predict, dense, retrieval: IMAGES ahead of them")
    parser.add_argument(
        "--pool", choices=["mean", "class", "both"], default="mean", help="features of an image; default: %(default)s"
    )
    parser.add_argument(
        "--k",
        type=int,
        metavar="N",
        help="knn: neighbours that vote; default: the run's EVALUATE.knn, or 20. dense: the same of patches; default: "
        "chosen. retrieval: nearest images; default: 10",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.07, metavar="T", help="knn: of the vote; default: %(default)s"
    )
    parser.add_argument(
        "--c", type=float, metavar="C", help="logistic, dense: inverse penalty; default: 1, and for dense chosen"
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
        help="classify, predict, corruptions: a setting of a probe, as 'rate 3'; default: the one that the run chose",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="features, predict: the file to write, of masks the folder; dense, retrieval, corruptions: the folder of "
        "pictures; default: their name",
    )
    parser.add_channels()
    _add_sheets(parser)
    parser.add_json()
    return cli.run(parser, _evaluate, arguments)


def _add_sheets(parser: cli.Parser) -> None:
    """What dense and retrieval show."""
    sheets = parser.add_argument_group("dense, retrieval and corruptions")
    sheets.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images or queries on a sheet; default: 8, or IMAGES. corruptions: held-out images; default: all",
    )
    sheets.add_argument("--seed", type=int, default=0, help="of the choice of images; default: %(default)s")
    sheets.add_argument("--stride", type=int, metavar="PX", help="dense: of the feature map; default: of the output")
    sheets.add_argument(
        "--patches",
        type=int,
        default=20_000,
        metavar="N",
        help="dense: of the training images that are fitted, at most; 0: all; default: %(default)s",
    )
    sheets.add_argument("--leave-one-out", action="store_true", help="retrieval: the held-out images search each other")
    sheets.add_argument(
        "--only", default="", metavar="NAMES", help="corruptions: names or families, as noise,fog; default: all 15"
    )


def _evaluate(args: argparse.Namespace) -> None:
    _check_output(args.what, args.output)
    from rich.console import Console

    from mim.io.files import write_json

    metrics = _metrics(args)
    if int(os.environ.get("RANK", 0)):
        return
    Console().print(_table(metrics))
    if CORRUPTIONS_BY_NAME in metrics:
        Console().print(_corruption_table(metrics[CORRUPTIONS_BY_NAME]))
    for name in PATHS:
        if name in metrics:
            print(f"{name}: {metrics[name]}")
    for path in metrics.get("pictures", ()):
        print(f"wrote {path}")
    if args.json:
        write_json(args.json, metrics)


def _metrics(args: argparse.Namespace) -> dict[str, Any]:
    from mim import evaluate
    from mim.data.labels.settings import LabelSettings

    labels = LabelSettings(share=args.share, per_class=args.per_class, seed=args.label_seed)
    if args.what == "classify":
        return evaluate.classify(args.run, args.overrides, args.setting)
    if args.what == "predict":
        images, pairs = _images_and_pairs(args.overrides)
        if not images:
            raise ValueError("predict: name images behind RUN: files, folders or a .txt list, and keys behind them")
        return evaluate.predict(args.run, images, args.output, pairs, args.setting)
    if args.what in ("dense", "retrieval"):
        return _sheets(args)
    if args.what == "corruptions":
        names = [word for word in args.only.split(",") if word]
        corrupted = evaluate.CorruptionSettings(only=names, images=args.images, seed=args.seed, setting=args.setting)
        return evaluate.corruptions(args.run, args.output or Path(args.what), args.overrides, corrupted)
    if args.what == "features":
        return evaluate.features(args.run, args.overrides, args.pool, args.output)
    if args.what == "knn":
        return evaluate.knn(args.run, args.overrides, args.pool, args.k, args.temperature, labels)
    return evaluate.logistic(args.run, args.overrides, args.pool, 1.0 if args.c is None else args.c, labels)


def _sheets(args: argparse.Namespace) -> dict[str, Any]:
    from mim import evaluate

    images, pairs = _images_and_pairs(args.overrides)
    output = args.output or Path(args.what)
    common: dict[str, Any] = {"images": args.images, "channels": cli.channels(args.channels), "seed": args.seed}
    if args.what == "retrieval":
        k = 10 if args.k is None else args.k
        search = evaluate.RetrievalSettings(pool=args.pool, k=k, leave_one_out=args.leave_one_out, **common)
        return evaluate.retrieval(args.run, images, output, pairs, search)
    patches = evaluate.PatchSettings(patches=args.patches, k=args.k, c=args.c, seed=args.seed)
    look = evaluate.DenseSettings(stride=args.stride, patches=patches, **common)
    return evaluate.dense(args.run, images, output, pairs, look)


def _check_output(what: str, output: Path | None) -> None:
    """Raises ValueError where --output is missing, or has an ending of another kind of file."""
    endings = ENDINGS.get(what, ())
    if what == "predict" and output is not None and not output.suffix:
        return  # a folder, which masks need
    if endings and (output is None or output.suffix.lower() not in endings):
        value = f"--output is {output}: " if output else ""
        raise ValueError(f"{value}{what} writes a file: name it with --output FILE{' or FILE'.join(endings)}")


def _images_and_pairs(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """IMAGES, and the KEY VALUE pairs behind them. A file that is named like a key is written ./DATA.png."""
    index = next((index for index, word in enumerate(words) if _is_key(word)), len(words))
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
        if name == CORRUPTIONS_BY_NAME:
            continue  # a table of its own
        if isinstance(value, dict):
            table.add_row(name, "")
            for label, share in value.items():
                table.add_row(f"  {label}", f"{share:.4f}" if isinstance(share, float) else _text(label, share))
        elif name not in PATHS and not isinstance(value, list):  # the log names files
            ends = metrics.get(interval(name), ())
            between = f"  95%: {' to '.join(f'{end:.4f}' for end in ends)}" if ends else ""
            table.add_row(name, f"{_text(name, value)}{between}")
    return table


def _corruption_table(by_name: dict[str, dict[str, Any]]) -> "Table":
    """A row a corruption: top-1 at each severity, and their mean with its interval."""
    from rich import box
    from rich.table import Table

    severities = range(1, 1 + max(len(each["by_severity"]) for each in by_name.values()))
    table = Table("severity", *map(str, severities), "mean", "95%", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for name, each in by_name.items():
        ends = "-".join(f"{end:.2f}" for end in each.get("interval", ()))
        shares = (f"{share:.3f}" for share in (*each["by_severity"], each["top1"]))
        table.add_row(name.replace("_", " "), *shares, ends)
    return table
