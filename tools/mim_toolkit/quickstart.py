"""Quickstart: MAE and SimMIM on handwritten digits, in one table."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mim import cli
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS, at_start

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from mim.data.sources.base import Source

TEXT = """Pretrains MAE and SimMIM on real handwritten digits and shows what came out. It takes a few minutes on two CPU
cores. The same command continues where it was stopped."""
EXAMPLES = ("", "--output runs/short TRAIN.epochs 5")
RECIPES = {"MAE": "quickstart/mae_digits", "SimMIM": "quickstart/simmim_digits"}
# of the recipes' operations a step 57% (MAE) and 31% (SimMIM), of their epochs 60% and 50%, to end within three minutes
# on two cores without bf16
SMALLER = {"ENCODER.width": "64", "ENCODER.depth": "4"}
EPOCHS = {"MAE": "18", "SimMIM": "10"}
HEADINGS = ("held-out\nloss", "loss of\nthe mean", "kNN,\nrandom init", "kNN,\npretrained", "images\nper s", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("quickstart", TEXT, EXAMPLES)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_pairs("keys of both recipes, such as TRAIN.epochs 5")
    return cli.run(parser, _quickstart, arguments)


def _quickstart(args: argparse.Namespace) -> None:
    cli.check_folder("--output", args.output)
    for recipe in RECIPES.values():
        cli.check_config(recipe, args.overrides)
    from rich.console import Console

    from mim.run import train

    summaries = {
        method: train(recipe, _overrides(method, args.overrides), args.output / Path(recipe).name)
        for method, recipe in RECIPES.items()
    }
    Console().print(comparison(summaries, _pixel_accuracy()))
    print(f"Pictures: {args.output}/*/reconstructions/\nCurves:   tensorboard --logdir {args.output}")
    print("Digits are easy: raw pixels classify nearly all of them. This shows that training works, and no more.")
    print("The two losses are of different targets: compare each with its own loss of the mean.")


def _overrides(method: str, words: Sequence[str]) -> dict[str, str]:
    """What differs from the recipe of a method. words: keys and values of the command line, which come first."""
    return {**SMALLER, "TRAIN.epochs": EPOCHS[method], **dict(zip(words[::2], words[1::2], strict=True))}


def comparison(summaries: Mapping[str, dict], pixels: float) -> "Table":
    """The metrics of each run, a row a run, beside what needs no training."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Pretrained on 1,437 handwritten digits, evaluated on 360 others",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for method, metrics in summaries.items():
        shares = [metrics.get(key) for key in (VAL_LOSS, VAL_BASELINE, at_start(KNN_TOP1), KNN_TOP1)]
        table.add_row(
            method,
            *("" if share is None else f"{share:.3f}" for share in shares),
            f"{metrics['images_per_s']:,.0f}",
            f"{metrics['seconds']:.0f}",
        )
    table.add_row("raw pixels", "", "", "", f"{pixels:.3f}", "", "")
    return table


def _pixel_accuracy() -> float:
    """kNN accuracy on the pixels themselves, with the settings that judge the encoders."""
    from mim.build import build_data, load_config
    from mim.evaluation.knn import knn_accuracy

    cfg = load_config(RECIPES["MAE"])
    bank, queries = map(_pixels, build_data(cfg))
    return knn_accuracy(*bank, *queries, k=cfg.EVALUATE.knn, temperature=cfg.EVALUATE.knn_temperature)


def _pixels(source: "Source") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor

    images = [pil_to_tensor(source.read(index)).flatten().float() for index in range(len(source))]
    return torch.stack(images), torch.as_tensor(source.labels)
