"""Convert: weights from one code base's format to another's."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mim import cli

TEXT = """Converts weights from the format of one code base to that of another, and reports what became of each weight.

  mim           IN: a run folder or a checkpoint; OUT: a checkpoint
  mae           facebookresearch/mae: pretrained, fine-tuned, probed
  simmim        microsoft/SimMIM and microsoft/Swin-Transformer
  timm          .pth or .safetensors of ViT, Beit, Swin and Swin V2
  transformers  a folder with config.json and model.safetensors of ViTMAE, ViT,
                Swin and Swin V2

Without --from the format of IN is recognised by its keys. KEY VALUE pairs say what the weights do not tell, such as
ENCODER.heads 12, or ask for another size: with DATA.image_size "[384,384]" positions are resized."""
FORMATS = ("mim", "mae", "simmim", "timm", "transformers")
EXAMPLES = ("--to timm runs/mae encoder.safetensors", "--to mim mae_pretrain_vit_base.pth mae.pt ENCODER.heads 12")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("convert", TEXT, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="IN", help="file or folder to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="file or folder to write")
    parser.add_pairs("keys that IN does not hold, such as ENCODER.heads 12")
    parser.add_argument("--from", dest="origin", choices=FORMATS, default="", help="format of IN")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format of OUT")
    return cli.run(parser, _convert, arguments)


def _convert(args: argparse.Namespace) -> None:
    from mim.convert import convert

    lines = convert(args.source, args.target, args.to, args.origin, args.overrides)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in lines[:-1]:
        print(_folded(line, width) if line.startswith("  ") else line)  # the others begin with a path
    print(lines[-1])  # a call to copy as a whole


def _folded(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
