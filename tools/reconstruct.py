"""Reconstruct: what pretraining runs make of images of which a part is hidden, as one labelled PNG sheet.

  python tools/reconstruct.py RUN_OR_CHECKPOINT [IMAGE ...] [--output reconstruction.png]

  reconstruct.py runs/mae                                8 held-out images under the run's own masker
  reconstruct.py runs/mae cat.jpg --ratio 0.5 0.75 0.9   a row for each ratio
  reconstruct.py runs/mae photos/ --beside runs/simmim   both runs under the same masks
  reconstruct.py runs/mae street.jpg --mask car.png      hides what is white in car.png, drawn over street.jpg
  reconstruct.py runs/plates cells.npy --channels 0,3,5  three channels as red, green, blue; one as grey; or pca

A row has the original, what the model sees, its prediction, the prediction with the visible pixels pasted in, and the
absolute error where pixels were hidden. Files of MAE and SimMIM that hold their decoder are taken as well. Nothing in a
run folder is changed.
"""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from mim.engine.log import log_to_console
from mim.io.files import write_whole
from mim.lab.reconstruct import MaskChoice, Reconstructed, reconstruct
from mim.pictures.channels import Channels
from mim.pictures.sheets import png


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    args = _parser().parse_intermixed_args(arguments)
    log_to_console(True)
    try:
        mask = MaskChoice(masker=args.masker, cell=args.cell, ratios=tuple(args.ratio), picture=args.mask)
        found = reconstruct(
            args.run,
            args.images,
            beside=args.beside,
            mask=mask,
            channels=_channels(args.channels),
            held_out=args.held_out,
            seed=args.seed,
            overrides=[word for pair in args.set for word in pair],
        )
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.output, lambda file: file.write(png(found.picture_HW3)))
    except (ValueError, OSError) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(_table(found))
    print(args.output)
    return 0


def _table(found: Reconstructed) -> Table:
    """A row a run, with its error over all that the sheet shows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "checkpoint"):
        table.add_column(column, overflow="fold")
    table.add_column(f"mean error,\n{found.unit}", justify="right")
    for loaded in found.loaded:
        error = found.runs[loaded.name].error_B.mean().item()
        table.add_row(loaded.name, str(loaded.path), f"{error:.2f}")
    return table


def _channels(text: str) -> Channels:
    if text == "pca":
        return "pca"
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise ValueError(
            f"--channels is {text!r}: numbers from 0 with commas between, such as 0,3,5, or pca"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, metavar="RUN_OR_CHECKPOINT", help="a pretraining run, or a file of its weights"
    )
    parser.add_argument(
        "images", type=Path, nargs="*", metavar="IMAGE", help="files, or folders; none: images the run held out"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("reconstruction.png"), metavar="PNG", help="default: reconstruction.png"
    )
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="another run, on the same images; repeatable",
    )
    parser.add_argument("--held-out", type=int, metavar="N", help="how many, where no IMAGE is named; default: 8")
    masks = parser.add_argument_group("what is hidden; what is not said is as in the run")
    masks.add_argument("--masker", default="", metavar="NAME", help="random, block, grid, or one of your own")
    masks.add_argument("--cell", type=int, default=0, metavar="PX", help="side of a cell in pixels")
    masks.add_argument(
        "--ratio", type=float, nargs="+", default=[], metavar="R", help="shares of hidden cells, a row for each"
    )
    masks.add_argument(
        "--mask", type=Path, metavar="PICTURE", help="instead of a masker: white is hidden, black visible"
    )
    masks.add_argument("--seed", type=int, default=0, help="of the masks and the held-out images; default: 0")
    parser.add_argument(
        "--channels", default="", metavar="C,C,C", help="of images that are not RGB, from 0: three, one, or pca"
    )
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="such as DATA.path /data; repeatable",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
