"""Masks: what a masker hides, in figures and in a picture.

  python tools/masks.py --config FILE [--output PNG] [--ratios 0.4 0.6 0.8] [--cells 8 16 32] [--samples 6] [--over]
      [KEY VALUE ...]

One row for each cell side and masking ratio; without --cells or --ratios, the config's own. AvgDist is the mean
distance from a hidden pixel to the nearest visible one. KEY VALUE pairs change the config, such as MASKER.name block.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mim.build import build_data, evaluation_data
from mim.config.load import load_config
from mim.config.schema import image_spec, part
from mim.data.transforms import to_unit
from mim.engine.log import log_to_console
from mim.evaluation.avg_dist import masker_avg_dist, pixel_distances
from mim.evaluation.reading import Reader, choice
from mim.io.files import write_whole
from mim.ops.seeding import generator_for
from mim.pictures.masks import SampledMasks, draw_masks

MASKS = 256  # that AvgDist is a mean over
BEST, BEST_SIDES = (10, 20), (192, 224)  # pixels: SimMIM's range, and the images that it is about
SIMMIM = "* AvgDist of 10 to 20 px: where SimMIM's fine-tuning was best (section 4.1.2; Swin-B, images of 192 px)"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Asked:
    """A combination of the command line; None where the config decides. why_not: why it is impossible, else empty."""

    cell: str | None
    ratio: str | None
    cfg: Any = None
    why_not: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    args = _parser().parse_intermixed_args(arguments)
    log_to_console(main=True)
    _say_once()
    try:
        _show(args)
    except ValueError as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _show(args: argparse.Namespace) -> None:
    output = args.output or Path("runs") / "masks" / f"{args.config.stem}.png"
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output is {output}: the picture is a PNG, so name a file that ends in .png")
    if args.samples < 1:
        raise ValueError(f"--samples is {args.samples}: at least 1 mask a row must be shown")
    combinations = _combinations(args)
    possible = [asked.cfg for asked in combinations if not asked.why_not]
    images_NCHW = _held_out(possible[0], args.samples) if args.over else None
    found = [_sampled(cfg, args.samples) for cfg in possible]
    print(f"{args.config}: {MASKS} sampled masks a row")
    _print_table(combinations, found)
    _, height, width = found[0].hidden_NHW.shape
    title = f"{found[0].masker} masker, images of {height} × {width} px ({args.config.name})"
    note = f"AvgDist: mean over {MASKS} sampled masks,\n± half of its 95% interval"
    picture_HW3 = draw_masks(found, title, images_NCHW, note)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda file: Image.fromarray(picture_HW3.numpy()).save(file, "PNG"))
    print(f"Picture: {output}")


# -------------------------------------------------------------------- combinations


def _combinations(args: argparse.Namespace) -> list[Asked]:
    """Every cell side with every ratio. Raises ValueError where none is possible."""
    cells, after_cells = _numbers("--cells", args.cells)
    ratios, after_ratios = _numbers("--ratios", args.ratios)
    pairs = [*args.overrides, *after_cells, *after_ratios]
    for key, flag, given in (("MASKER.cell", "--cells", cells), ("MASKER.ratio", "--ratios", ratios)):
        if given and key in pairs[::2]:
            raise ValueError(f"{key} is given, and {flag} too: leave one of them out")
    combinations = [
        _asked(args.config, cell, ratio, pairs) for cell, ratio in product(cells or [None], ratios or [None])
    ]
    reasons = list(dict.fromkeys(asked.why_not for asked in combinations))
    if "" not in reasons:
        several = len(reasons) > 1
        raise ValueError("no combination is possible:\n  " + "\n  ".join(reasons) if several else reasons[0])
    return combinations


def _say_once() -> None:
    """A config is read once for each combination; what it warns of is said once."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text in said or said.add(text))

    for handler in logging.getLogger("mim").handlers:
        handler.addFilter(new)


def _numbers(flag: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The numbers of a flag, each once, and the KEY VALUE pairs that stand behind them."""
    first_key = next((place for place, word in enumerate(words) if word[:1].isalpha()), len(words))
    numbers = dict.fromkeys(words[:first_key])
    if first_key == 0 and words:
        raise ValueError(f"{flag} is followed by {words[0]!r}: name at least one number")
    for number in numbers:
        try:
            float(number)
        except ValueError:
            raise ValueError(f"{flag} {number}: it must be a number") from None
    return list(numbers), list(words[first_key:])


def _asked(file: Path, cell: str | None, ratio: str | None, pairs: list[str]) -> Asked:
    own = [("MASKER.cell", cell), ("MASKER.ratio", ratio)]
    try:
        cfg = load_config(file, [*pairs, *(word for key, value in own if value is not None for word in (key, value))])
        if cfg.TASK != "pretrain":
            raise ValueError(f"TASK is {cfg.TASK}, which hides nothing: name a config of TASK pretrain")
    except ValueError as error:
        return Asked(cell, ratio, why_not=str(error).removeprefix(f"{file}: "))
    return Asked(cell, ratio, cfg)


# -------------------------------------------------------------------- masks and images


def _sampled(cfg: Any, samples: int) -> SampledMasks:
    image = image_spec(cfg)
    masker = part(cfg, "MASKER", image)
    mask = masker.sample(samples, generator_for(CPU, cfg.SEED, "masks of a picture"), CPU)
    return SampledMasks(
        masker=masker.name,
        cell=masker.cell,
        ratio=cfg.MASKER.get("ratio"),
        visible=masker.visible,
        cells=masker.cells,
        avg_dist=masker_avg_dist(masker, image, MASKS, cfg.SEED),
        hidden_NHW=mask.at(image.height, image.width),
        distance_NHW=pixel_distances(mask, image.height, image.width),
    )


def _held_out(cfg: Any, samples: int) -> Tensor:
    """Held-out images in [0, 1], (N, C, H, W). Raises ValueError where there are too few."""
    try:
        source = build_data(cfg)[1]
    except ValueError as error:
        raise ValueError(f"--over needs the images of the config, which are not there: {error}") from error
    if len(source) < samples:
        raise ValueError(
            f"--over needs {samples} held-out images, and DATA.name {cfg.DATA.name} has {len(source)}: show fewer with "
            "--samples, or name others with DATA.path"
        )
    data = evaluation_data(cfg, source)
    shown = Reader(samples, workers=0).read(data, choice(len(data), samples, cfg.SEED))
    images_NCHW = torch.cat([part.batch.images_BCHW for part in shown])
    if images_NCHW.dtype == torch.uint8:
        return to_unit(images_NCHW)
    images_NCHW = images_NCHW.float()  # microscopes rarely use the whole range of their type
    low_N111, high_N111 = images_NCHW.amin((1, 2, 3), keepdim=True), images_NCHW.amax((1, 2, 3), keepdim=True)
    return (images_NCHW - low_N111) / (high_N111 - low_N111).clamp(min=1e-12)


# -------------------------------------------------------------------- the table


def _print_table(combinations: list[Asked], found: list[SampledMasks]) -> None:
    """A row a combination, and below it why some are left out."""
    height, width = found[0].hidden_NHW.shape[1:]
    marked = all(BEST_SIDES[0] <= side <= BEST_SIDES[1] for side in (height, width))
    side = "of the side" if height == width else "of the\nshorter side"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("masker", no_wrap=True)
    for heading in ("cell\npx", "ratio\nasked", "cells\nvisible", "cells\nhidden", "AvgDist\npx", side):
        table.add_column(heading, justify="right", no_wrap=True)
    rows, reasons = iter(found), list(dict.fromkeys(asked.why_not for asked in combinations if asked.why_not))
    for asked in combinations:
        if asked.why_not:
            number = reasons.index(asked.why_not) + 1
            ratio = f"{float(asked.ratio):g}" if asked.ratio else "-"
            table.add_row(found[0].masker, asked.cell or "-", ratio, f"left out \\[{number}]", style="dim")
        else:
            table.add_row(*_cells(next(rows), marked))
    console = Console()
    console.print(table)
    for number, reason in enumerate(reasons, 1):
        console.print(f"[{number}] {reason}", markup=False, highlight=False)
    if marked:
        print(SIMMIM)


def _cells(row: SampledMasks, marked: bool) -> list[str]:
    mean, half = row.avg_dist.mean, row.avg_dist.half or 0.0
    star = "" if not marked else " *" if BEST[0] <= mean <= BEST[1] else "  "
    return [
        row.masker,
        str(row.cell),
        "-" if row.ratio is None else f"{row.ratio:g}",
        f"{row.visible:,} of {row.cells:,}",
        f"{row.share:.1%}",
        f"{mean:.2f} ± {half:.2f}{star}",
        f"{mean / row.side:.1%}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a YAML recipe of pretraining")
    parser.add_argument("--output", type=Path, help="the PNG to write; default: runs/masks/<name of the config>.png")
    parser.add_argument("--ratios", nargs="+", default=[], metavar="RATIO", help="instead of MASKER.ratio")
    parser.add_argument("--cells", nargs="+", default=[], metavar="PX", help="instead of MASKER.cell")
    parser.add_argument("--samples", type=int, default=6, help="masks shown in a row of the picture; default: 6")
    parser.add_argument("--over", action="store_true", help="show them over held-out images of the config's data")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as MASKER.name block")
    return parser


if __name__ == "__main__":
    sys.exit(main())
