"""Reconstruct: what pretraining runs predict of images of which a part is hidden, as one sheet."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mim import cli
from mim.pictures.files import check_ending, write_picture

if TYPE_CHECKING:
    from rich.table import Table

    from mim.lab.reconstruct import ReconstructionSheet

TEXT = """Draws what pretraining runs predict of images of which a part is hidden, as one labelled sheet.

A row has the original, what the model sees, its prediction, the prediction with the visible pixels pasted in, and the
absolute error where pixels were hidden. Files of MAE and SimMIM that hold their decoder are taken as well. Run folders
are not changed."""
EXAMPLES = (
    "runs/mae",
    "runs/mae cat.jpg --ratio 0.5 0.75 0.9",
    "runs/mae photos/ --beside runs/simmim",
    "runs/mae street.jpg --mask car.png",
    "runs/plates cells.npy --channels 0,3,5",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("reconstruct", TEXT, EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, checkpoint, or a file of weights")
    parser.add_argument(
        "images", type=Path, nargs="*", metavar="IMAGE", help="files, folders or .txt lists; default: held-out images"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("reconstruction.png"),
        metavar="FILE",
        help=".png or .jpg; default: %(default)s",
    )
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], metavar="RUN", help="another run; may be repeated"
    )
    parser.add_argument("--held-out", type=int, metavar="N", help="held-out images, without IMAGE; default: 8")
    parser.add_channels()
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a key; may be repeated",
    )
    masks = parser.add_argument_group("what is hidden; default: as in the run")
    masks.add_argument("--masker", default="", metavar="NAME", help="random, block, grid, or one of a plugin")
    masks.add_argument("--cell", type=int, default=0, metavar="PX", help="side of a cell in pixels")
    masks.add_argument("--ratio", type=float, nargs="+", default=[], metavar="R", help="shares of hidden cells")
    masks.add_argument("--mask", type=Path, metavar="PICTURE", help="instead: white is hidden, black visible")
    masks.add_argument("--seed", type=int, default=0, help="of masks and held-out images; default: %(default)s")
    return cli.run(parser, _reconstruct, arguments)


def _reconstruct(args: argparse.Namespace) -> None:
    channels = cli.channels(args.channels)
    check_ending("--output", args.output)
    from rich.console import Console

    from mim.lab.reconstruct import MaskChoice, reconstruction_sheet

    sheet = reconstruction_sheet(
        args.run,
        args.images,
        beside=args.beside,
        mask=MaskChoice(masker=args.masker, cell=args.cell, ratios=tuple(args.ratio), picture=args.mask),
        channels=channels,
        held_out=args.held_out,
        seed=args.seed,
        overrides=[word for pair in args.set for word in pair],
    )
    write_picture(args.output, sheet.picture_HW3)
    print(f"Mean error over hidden pixels, {sheet.unit}")
    Console().print(_table(sheet))
    for run in sheet.loaded:
        print(f"{run.name}: {run.path}")
    print(f"wrote {args.output}")


def _table(sheet: "ReconstructionSheet") -> "Table":
    """A row for each run, a column for each ratio: the mean error over all images."""
    from rich import box
    from rich.table import Table

    from mim.pictures.reconstructions import percent

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for share, _ in sheet.mean_errors(sheet.loaded[0].name):
        table.add_column(f"{percent(share)} hidden", justify="right", no_wrap=True)
    for run in sheet.loaded:
        table.add_row(run.name, *(f"{error:.2f}" for _, error in sheet.mean_errors(run.name)))
    return table
