"""Pack: turns images into a packed data set."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mim import cli
from mim.config import parse_config
from mim.errors import ExitCode

if TYPE_CHECKING:
    from mim.data.sources.packing import Packing

TEXT = """Turns images into a packed data set, resized, which a run reads without decoding.

SOURCE is what DATA.path of DATA.name folder takes: a folder with train/ and val/, class folders, a flat folder, a list
file. DATA.name names another source. Order, labels, names of classes and files, and held-out images are kept; where a
folder holds none out, DATA.val_share chooses them when the packed set is read. --size makes all images of one size,
which AUGMENT.on_device needs. Images that cannot be read are left out and named. OUT appears when it is complete."""
EXAMPLES = (
    "/data/photos /data/photos-256",
    "/data/photos /data/photos-256 --size 256 256 --store jpeg",
    "/data/plates /data/plates-packed DATA.labels none DATA.channels 12",
    "--check /data/photos-256",
)
NAMES = 10  # images left out, or damaged, that are named
SHORT_SIDE = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode; PARTLY: --check found damaged images."""
    parser = cli.Parser("pack", TEXT, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="images: what DATA.path of the source names")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the folder to write")
    parser.add_pairs("keys of DATA, such as DATA.labels none")
    parser.add_argument(
        "--short-side", type=int, metavar="PX", help=f"reduce the short side to it, 0: keep; default: {SHORT_SIDE}"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="instead: resize and cut every image to H x W pixels"
    )
    parser.add_argument(
        "--store", choices=("pixels", "jpeg"), default="pixels", help="jpeg: a ninth of the size; default: %(default)s"
    )
    parser.add_argument("--quality", type=int, default=90, metavar="Q", help="of JPEG, 1 to 100; default: %(default)s")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, 0: this one; default: one a core",
    )
    parser.add_argument("--check", action="store_true", help="check that the images of the packed SOURCE are intact")
    return cli.run(
        parser, lambda args: _check(args) if args.check else _pack(args), arguments, "stopped: nothing was written"
    )


def _pack(args: argparse.Namespace) -> None:
    if args.out is None:
        raise ValueError(f"name the folder to write: {shlex.join(cli.command_words('pack'))} SOURCE OUT")
    if args.size is not None and args.short_side is not None:
        raise ValueError("--size and --short-side exclude each other: --size cuts to one size, --short-side never cuts")
    cfg = parse_config(yaml.safe_dump({"DATA": _data(args)}), args.overrides)

    from mim.build import build_data
    from mim.data.sources.label_check import label_problem
    from mim.data.sources.packing import PackSettings, pack

    settings = PackSettings(
        short_side=SHORT_SIDE if args.short_side is None else args.short_side,
        size=args.size and (args.size[0], args.size[1]),
        store=args.store,
        quality=args.quality,
        workers=args.workers,
    )
    start = time.perf_counter()
    train, val = build_data(cfg)
    if problem := label_problem(train, val):
        print(f"warning: {problem}; or pack without labels, by DATA.labels none", file=sys.stderr)
    with _progress("packing", len(train) + len(val)) as advance:
        packing = pack({"train": train, "val": val}, args.out, settings, advance)
    _show(packing, args.out, time.perf_counter() - start)


def _data(args: argparse.Namespace) -> dict[str, str]:
    """The section DATA of the source. A share of a folder is held out when the packed set is read, not here."""
    pairs = dict(zip(args.overrides[::2], args.overrides[1::2], strict=False))
    foreign = next((key for key in pairs if not key.startswith("DATA.")), None)
    if foreign is not None and not foreign[:1].isupper():
        raise ValueError(
            f"{foreign} is a third name after SOURCE and OUT: put a pattern in quotes, so that the shell keeps it"
        )
    if foreign is not None:
        raise ValueError(f"{foreign} has no effect on packing: only keys of DATA have")
    data = {"name": pairs.get("DATA.name", "folder"), "path": str(args.source)}
    return data | {"val_share": "0"} if data["name"] == "folder" else data


def _check(args: argparse.Namespace) -> ExitCode:
    from mim.data.sources.packed import Header
    from mim.data.sources.packing import damaged

    images = sum(split.images for split in Header.of(args.source).splits.values())
    with _progress("checking", images) as advance:
        lines = damaged(args.source, advance)
    for line in lines[:NAMES]:
        print(line)
    more = f" ({len(lines) - NAMES} more are not shown)" if len(lines) > NAMES else ""
    print(f"damaged in {args.source}: {len(lines):,}{more}" if lines else f"no image of {args.source} is damaged")
    return ExitCode.PARTLY if lines else ExitCode.DONE


def _show(packing: "Packing", out: Path, seconds: float) -> None:
    from rich.filesize import decimal

    from mim.data.sources.packing import LEFT_OUT

    header = packing.header
    images = sum(split.images for split in header.splits.values())
    size = sum(split.bytes for split in header.splits.values())
    stored = f"{header.channels} x {header.dtype}" if header.store == "pixels" else "JPEG"
    sizes = f"short side {f'up to {header.short_side} px' if header.short_side else 'as it was'}"
    if header.size:
        sizes = f"{header.size[0]} x {header.size[1]} px each (height x width)"
    rows = {
        "images": ", ".join(f"{split.images:,} {name}" for name, split in header.splits.items()),
        "labels": f"{len(header.classes)} classes" if header.splits["train"].labelled else "none",
        "stored as": f"{stored}, {sizes}",
        "size": f"{decimal(size)}, {decimal(size // images)} an image",
        "time": f"{seconds:.1f} s, {images / seconds:,.0f} images/s",
        "left out": f"{header.left_out:,} that cannot be read, named in its {LEFT_OUT}" if packing.broken else "none",
    }
    for name, value in rows.items():
        print(f"{name:11}{value}")
    for name, reason in packing.broken[:NAMES]:
        print(f"  {name}: {reason}")
    if len(packing.broken) > NAMES:
        print(f"  and {len(packing.broken) - NAMES:,} more")
    pairs = ["DATA.name", "packed", "DATA.path", str(out), "DATA.channels", str(header.channels)]
    print(f"\nTo read it, set\n  {shlex.join(pairs)}")


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; gives the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)
