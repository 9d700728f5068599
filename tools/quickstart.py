"""Quickstart: pretrains MAE and SimMIM on real handwritten digits and shows what came out.

`make quickstart`, or `python tools/quickstart.py [--output runs/quickstart]`; about two minutes on two cores.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2.functional import pil_to_tensor

from mim.build import build_data
from mim.config.load import load_config
from mim.data.sources.base import Source
from mim.evaluation.knn import knn_accuracy
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS, at_start
from mim.run import train

RECIPES = {"MAE": "mae_digits", "SimMIM": "simmim_digits"}
HEADINGS = (
    "held-out\nloss",
    "loss of\nthe mean",
    "kNN,\nrandom init",
    "kNN,\npretrained",
    "images\nper s",
    "seconds",
)
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "quickstart"


def main() -> int:
    """Trains both recipes, then prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder of the two run folders")
    output = parser.parse_args().output
    summaries = {}
    for method, recipe in RECIPES.items():
        summaries[method] = train(load_config(CONFIGS / f"{recipe}.yaml"), output / recipe)
    Console().print(comparison(summaries, pixel_accuracy()))
    print(f"Pictures: {output}/*/reconstructions/   Curves: tensorboard --logdir {output}")
    print("Digits are easy: raw pixels classify nearly all of them. This shows that training works, and no more.")
    print("The two losses are of different targets: compare each with its own loss of the mean.")
    return 0


def comparison(summaries: dict[str, dict], pixels: float) -> Table:
    """The figures of each run, a row a run, beside what needs no training."""
    table = Table(
        title="Pretrained on 1,437 handwritten digits, judged on 360 others",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in HEADINGS:
        table.add_column(column, justify="right", no_wrap=True)
    for method, found in summaries.items():
        table.add_row(
            method,
            f"{found[VAL_LOSS]:.3f}",
            f"{found[VAL_BASELINE]:.3f}",
            f"{found[at_start(KNN_TOP1)]:.3f}",
            f"{found[KNN_TOP1]:.3f}",
            f"{found['images_per_s']:,.0f}",
            f"{found['seconds']:.0f}",
        )
    table.add_row("raw pixels", "", "", "", f"{pixels:.3f}", "", "")
    return table


def pixel_accuracy() -> float:
    """kNN accuracy on the pixels themselves, with the settings that judge the encoders."""
    cfg = load_config(CONFIGS / "mae_digits.yaml")
    bank, queries = map(_pixels, build_data(cfg))
    return knn_accuracy(*bank, *queries, k=cfg.EVALUATE.knn, temperature=cfg.EVALUATE.knn_temperature)


def _pixels(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    images = [pil_to_tensor(source.read(index)).flatten().float() for index in range(len(source))]
    return torch.stack(images), torch.as_tensor(source.labels)


if __name__ == "__main__":
    sys.exit(main())
