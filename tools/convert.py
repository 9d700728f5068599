"""Convert: weights from one code base's format to another's, with a report of what became of each.

  python tools/convert.py [--from FORMAT] --to FORMAT IN OUT [KEY VALUE ...]

  mim           IN: a run folder or a checkpoint; OUT: a checkpoint for INIT.checkpoint, evaluate and load_encoder
  mae           facebookresearch/mae: pretrained with or without decoder, fine-tuned, probed
  simmim        microsoft/SimMIM, and its successor in microsoft/Swin-Transformer: pretrained, fine-tuned
  timm          .pth or .safetensors of ViT, Beit, Swin and Swin V2
  transformers  a folder with config.json and model.safetensors, of ViTMAE, ViT, Swin and Swin V2

--from may be left out: the format of IN is recognised by its keys. KEY VALUE pairs say what weights do not tell, such
as ENCODER.heads 12, or ask for another size: with DATA.image_size "[384, 384]" positions are resized.
"""

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

from mim.convert import convert
from mim.interop import Format


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    args = _parser().parse_intermixed_args(arguments)
    try:
        lines = convert(args.source, args.target, args.to, args.given, args.overrides)
    except (ValueError, OSError) as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    width = shutil.get_terminal_size((120, 24)).columns
    for line in lines[:-1]:
        print(_folded(line, width) if line.startswith("  ") else line)  # the others begin with a path
    print(lines[-1])  # a call, to be copied whole
    return 0


def _folded(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = list(Format.members())
    parser.add_argument("source", type=Path, metavar="IN", help="file or folder to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="file or folder to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="what IN does not tell")
    parser.add_argument("--from", dest="given", choices=formats, default="", help="of IN; recognised where left out")
    parser.add_argument("--to", choices=formats, required=True, help="of OUT")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
