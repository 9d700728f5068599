"""Pack: turns images into a packed data set, resized, which a run reads without decoding.

  python tools/pack.py SOURCE OUT [--short-side 256 | --size H W] [--store pixels|jpeg] [--quality 90] [--workers N]
                       [KEY VALUE ...]
  python tools/pack.py --check OUT

SOURCE is whatever DATA.path of DATA.name folder takes: a folder with train/ and val/, class folders, a flat folder, a
list file. KEY VALUE pairs set other keys of DATA, such as DATA.labels none, DATA.channels 12, DATA.val_path FOLDER, or
DATA.name huggingface for another source. Order, labels, class and file names are kept, and held-out images where there
are any; where a folder has none, DATA.val_share chooses them when the packed set is read. --size makes all images of
one size, which AUGMENT.on_device needs. Images that cannot be read are left out and named. OUT appears when it is
complete.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mim.build import build_data
from mim.config.load import parse_config
from mim.data.sources.packed import Header
from mim.data.sources.packing import LEFT_OUT, Packing, PackSettings, damaged, pack
from mim.engine.log import log_to_console
from mim.errors import DataLost

SHOWN = 10  # images left out, or damaged, that are named


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 damaged images were found, 2 something for the user to mend, 130 stopped by hand."""
    args = _parser().parse_intermixed_args(arguments)
    log_to_console(main=True)
    try:
        return _check(args) if args.check else _pack(args)
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, DataLost) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _pack(args: argparse.Namespace) -> int:
    if args.out is None:
        raise ValueError("name the folder to write: python tools/pack.py SOURCE OUT")
    settings = _settings(args)
    start = time.perf_counter()
    train, val = build_data(_config(args))
    with _progress() as progress:
        task = progress.add_task("packing", total=len(train) + len(val))
        packed = pack({"train": train, "val": val}, args.out, settings, lambda done: progress.advance(task, done))
    _show(packed, args.out, time.perf_counter() - start)
    return 0


def _settings(args: argparse.Namespace) -> PackSettings:
    if args.size is not None and args.short_side is not None:
        raise ValueError("--size and --short-side exclude each other: --size cuts to one size, --short-side never cuts")
    return PackSettings(
        short_side=PackSettings.short_side if args.short_side is None else args.short_side,
        size=args.size and (args.size[0], args.size[1]),
        store=args.store,
        quality=args.quality,
        workers=args.workers,
    )


def _config(args: argparse.Namespace):
    """A config whose DATA is the source. A folder's share is held out when the packed set is read, unless asked for."""
    pairs = dict(zip(args.overrides[::2], args.overrides[1::2], strict=False))
    foreign = next((key for key in pairs if not key.startswith("DATA.")), None)
    if foreign is not None:
        raise ValueError(f"{foreign} has no effect on packing: only keys of DATA have")
    data = {"name": pairs.get("DATA.name", "folder"), "path": str(args.source)}
    if data["name"] == "folder":
        data["val_share"] = "0"
    return parse_config(yaml.safe_dump({"DATA": data}), args.overrides)


def _check(args: argparse.Namespace) -> int:
    with _progress() as progress:
        contents = Header.of(args.source).splits.values()
        task = progress.add_task("checking", total=sum(held.images for held in contents))
        found = damaged(args.source, lambda done: progress.advance(task, done))
    for line in found[:SHOWN]:
        print(line)
    more = f" ({len(found) - SHOWN} more are not shown)" if len(found) > SHOWN else ""
    print(f"damaged in {args.source}: {len(found):,}{more}" if found else f"no image of {args.source} is damaged")
    return 1 if found else 0


def _show(packed: Packing, out: Path, seconds: float) -> None:
    header, console = packed.header, Console()
    images = sum(held.images for held in header.splits.values())
    size = sum(held.bytes for held in header.splits.values())
    kept = f"{header.channels} x {header.dtype}" if header.store == "pixels" else "JPEG"
    sizes = f"short side {f'up to {header.short_side} px' if header.short_side else 'as it was'}"
    if header.size:
        sizes = f"{header.size[0]} x {header.size[1]} px each (height x width)"
    rows = {
        "images": ", ".join(f"{held.images:,} {split}" for split, held in header.splits.items()),
        "labels": f"{len(header.classes)} classes" if header.splits["train"].labelled else "none",
        "kept as": f"{kept}, {sizes}",
        "size": f"{decimal(size)}, {decimal(size // images)} an image",
        "time": f"{seconds:.1f} s, {images / seconds:,.0f} images/s",
        "left out": f"{header.left_out:,} that cannot be read, named in its {LEFT_OUT}" if packed.broken else "none",
    }
    table = Table.grid(padding=(0, 2))
    for word, value in rows.items():
        table.add_row(f"[bold]{word}[/]", escape(value))
    console.print(table)
    for name, reason in packed.broken[:SHOWN]:
        console.print(f"  {escape(name)}: {escape(reason)}", soft_wrap=True)
    if len(packed.broken) > SHOWN:
        console.print(f"  and {len(packed.broken) - SHOWN:,} more")
    console.print("\nTo read it, set", highlight=False)
    pairs = ["DATA.name", "packed", "DATA.path", str(out), "DATA.channels", str(header.channels)]
    print(f"  {shlex.join(pairs)}")  # to be copied whole


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> str:
        return f"{task.speed:,.0f} images/s" if task.speed else ""


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="images: what DATA.path of the source names")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the folder to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of DATA, such as DATA.labels none")
    parser.add_argument(
        "--short-side", type=int, metavar="PX",
        help="what the shorter side is reduced to, never enlarged; 0: sizes as they are; "
        f"default: {PackSettings.short_side}",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help="in place of --short-side: every image reduced or enlarged to cover H x W pixels, and cut at the centre",
    )  # fmt: skip
    parser.add_argument(
        "--store", choices=("pixels", "jpeg"), default="pixels",
        help="pixels: fastest; jpeg: about a ninth of the size, and each reading decodes; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100; default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: this one; default: one a core"
    )
    parser.add_argument("--check", action="store_true", help="SOURCE is a packed folder: are its images still whole?")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
