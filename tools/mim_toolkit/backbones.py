"""Backbones: which models of timm can be pretrained, in which ways."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mim import cli
from mim.io.files import write_atomically

TEXT = """Tells which ways of hiding work with models of timm (ENCODER: {name: timm, model: ...}), what they cost, and
why a way does not work. Models are built without weights, so nothing is downloaded and any size fits."""
EXAMPLES = (
    "convnextv2_tiny vit_small_patch16_dinov3",
    "'resnet*'",
    "--page docs/backbones.md --rows docs/backbones.csv",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("backbones", TEXT, EXAMPLES)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a name of timm, or a pattern; default: all")
    parser.add_argument("--rows", type=Path, metavar="FILE.csv", help="keep what is found here, and go on from it")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write all rows as a page")
    return cli.run(parser, _backbones, arguments)


def _backbones(args: argparse.Namespace) -> None:
    import timm

    from mim.lab.backbones import table
    from mim.lab.backbones.survey import survey

    known = table.read_rows(args.rows) if args.rows else {}
    names = [name for pattern in args.models for name in timm.list_models(pattern) or [pattern]] or timm.list_models()
    surveyed = []
    for name in dict.fromkeys(names):
        backbone = known.get(name)
        if backbone is None:
            backbone = survey(name)
            if args.rows:
                table.append_row(args.rows, backbone)
        surveyed.append(backbone)
        if not args.page:
            print("\n".join(table.lines(backbone)), flush=True)
    if args.page:
        text = table.page(surveyed, timm.__version__)
        write_atomically(args.page, lambda file: file.write(text.encode()))
        print(f"Page: {args.page}, {len(surveyed):,} models")
