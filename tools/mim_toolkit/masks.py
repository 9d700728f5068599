"""Masks: what a masker hides, in numbers and in a picture."""

import argparse
import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mim import cli
from mim.config import load_config
from mim.config.recipes import find_file
from mim.pictures.files import check_ending

if TYPE_CHECKING:
    from mim.config import Config
    from mim.pictures.masks import SampledMasks

TEXT = """Shows what a masker hides: one row for each cell side and masking ratio, and a picture. AvgDist is the mean
distance from a hidden pixel to the nearest visible one."""
EXAMPLES = (
    "--config mae/vit_base",
    "--config simmim/swin_base_100ep --ratios 0.4 0.6 0.8 --cells 16 32",
    "--config quickstart/mae_digits --over MASKER.name block",
)
BEST, BEST_SIDES = (10, 20), (192, 224)  # pixels: SimMIM's range, and the image sizes for which it holds
SIMMIM = "* AvgDist of 10 to 20 px: where SimMIM's fine-tuning was best (section 4.1.2;\n  Swin-B, images of 192 px)"


class Combination(NamedTuple):
    """A cell side and a ratio; None: as in the config. cfg: None where they are impossible, and `problem` says why."""

    cell: str | None
    ratio: str | None
    cfg: "Config | None" = None
    problem: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("masks", TEXT, EXAMPLES)
    parser.add_config()
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: runs/masks/<name of the config>.png")
    parser.add_argument("--ratios", nargs="+", default=[], metavar="R", help="instead of MASKER.ratio")
    parser.add_argument("--cells", nargs="+", default=[], metavar="PX", help="instead of MASKER.cell")
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="masks in a row; default: %(default)s")
    parser.add_argument("--over", action="store_true", help="draw them over held-out images of the config")
    return cli.run(parser, _masks, arguments)


def _masks(args: argparse.Namespace) -> None:
    output = args.output or Path("runs") / "masks" / f"{Path(args.config).stem}.png"
    check_ending("--output", output)
    if args.samples < 1:
        raise ValueError(f"--samples is {args.samples}: it must be at least 1")
    _warn_once()
    combinations = _possible(_combinations(args))

    from mim.build import check
    from mim.lab.masks import MASKS, draw, held_out_images, sample

    combinations = _possible([_checked(each, check) for each in combinations])
    configs = [each.cfg for each in combinations if each.cfg is not None]
    images_NCHW = held_out_images(configs[0], args.samples) if args.over else None
    rows = [sample(cfg, args.samples) for cfg in configs]
    print(f"{args.config}: each row is the mean over {MASKS} sampled masks")
    _print_table(combinations, rows)
    draw(rows, output, Path(args.config).name, images_NCHW)
    print(f"Picture: {output}")


# -------------------------------------------------------------------- combinations


def _combinations(args: argparse.Namespace) -> list[Combination]:
    """Every cell side with every ratio."""
    cells, after_cells = _numbers("--cells", args.cells)
    ratios, after_ratios = _numbers("--ratios", args.ratios)
    pairs = [*args.overrides, *after_cells, *after_ratios]
    for key, flag, numbers in (("MASKER.cell", "--cells", cells), ("MASKER.ratio", "--ratios", ratios)):
        if numbers and key in pairs[::2]:
            raise ValueError(f"{key} is given, and {flag} too: leave one of them out")
    unset: list[str | None] = [None]
    return [_combination(args.config, cell, ratio, pairs) for cell, ratio in product(cells or unset, ratios or unset)]


def _possible(combinations: list[Combination]) -> list[Combination]:
    """The combinations. Raises ValueError where none of them is possible."""
    problems = _problems(combinations)
    if all(each.problem for each in combinations):
        several = len(problems) > 1
        problem = "no combination is possible:\n  " + "\n  ".join(problems) if several else problems[0]
        raise ValueError(problem)
    return combinations


def _problems(combinations: Sequence[Combination]) -> list[str]:
    return list(dict.fromkeys(each.problem for each in combinations if each.problem))


def _warn_once() -> None:
    """The config is read once for each combination; a warning is shown once."""
    earlier: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_repeated = text in earlier
        earlier.add(text)
        return not is_repeated

    for handler in logging.getLogger("mim").handlers:
        handler.addFilter(is_new)


def _numbers(flag: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The numbers of a flag, each once, and the KEY VALUE pairs behind them."""
    numbers, pairs = cli.split_at_key(words)
    if pairs and not numbers:
        raise ValueError(f"{flag} is followed by {pairs[0]!r}: name at least one number")
    for number in numbers:
        try:
            float(number)
        except ValueError:
            raise ValueError(f"{flag} {number}: it must be a number") from None
    return list(dict.fromkeys(numbers)), pairs


def _combination(file: str, cell: str | None, ratio: str | None, pairs: list[str]) -> Combination:
    values = {"MASKER.cell": cell, "MASKER.ratio": ratio}
    words = [word for key, value in values.items() if value is not None for word in (key, value)]
    path = find_file(file)
    try:
        cfg = load_config(path, [*pairs, *words])
        if cfg.TASK != "pretrain":
            raise ValueError(f"TASK is {cfg.TASK}, which hides nothing: name a config of TASK pretrain")
    except ValueError as error:
        return Combination(cell, ratio, problem=str(error))
    return Combination(cell, ratio, cfg)


def _checked(combination: Combination, check: Callable[["Config"], None]) -> Combination:
    """The combination, with the problem that a check finds in its config."""
    try:
        if combination.cfg is not None:
            check(combination.cfg)
    except ValueError as error:
        return combination._replace(cfg=None, problem=str(error))
    return combination


# -------------------------------------------------------------------- the table


def _print_table(combinations: list[Combination], rows: "list[SampledMasks]") -> None:
    """A row a combination, and below the table why some are left out."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    height, width = rows[0].hidden_NHW.shape[1:]
    marked = all(BEST_SIDES[0] <= side <= BEST_SIDES[1] for side in (height, width))
    side = "of the side" if height == width else "of the\nshorter side"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("masker", no_wrap=True)
    for heading in ("cell\npx", "ratio\nset", "cells\nvisible", "cells\nhidden", "AvgDist\npx", side):
        table.add_column(heading, justify="right", no_wrap=True)
    sampled, problems = iter(rows), _problems(combinations)
    for each in combinations:
        if each.problem:
            ratio = f"{float(each.ratio):g}" if each.ratio else "-"
            reason = f"left out \\[{problems.index(each.problem) + 1}]"
            table.add_row(rows[0].masker, each.cell or "-", ratio, reason, style="dim")
        else:
            table.add_row(*_texts(next(sampled), marked))
    console = Console()
    console.print(table)
    for number, problem in enumerate(problems, 1):
        console.print(f"[{number}] {problem}", markup=False, highlight=False)
    if marked:
        print(SIMMIM)


def _texts(row: "SampledMasks", marked: bool) -> list[str]:
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
