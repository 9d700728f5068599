"""Export: the encoder or the predictor of a checkpoint as a program of ONNX or PyTorch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mim import cli

TEXT = """Writes the encoder of a checkpoint, or the predictor of a fine-tuning or probe, as a program that needs none
of this toolkit and takes batches of any size. Before the file gets its name, its answers are compared with those of the
model.

  .onnx  ONNX, compared in onnxruntime; pip install 'mim-toolkit[export]'
  .pt2   torch.export, compared after it was loaded again

Features are tokens (of the patches), prefix (class token and registers)
and pooled (the mean of the patch tokens)."""
EXAMPLES = (
    "runs/mae --output encoder.onnx --features pooled",
    "runs/finetune --output classifier.onnx",
    "runs/mae --output encoder.pt2 --normalisation outside",
)
NORMALISATION = ("inside", "outside")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("export", TEXT, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="RUN", help="run folder, checkpoint, or a file of weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write: .onnx or .pt2")
    parser.add_argument(
        "--features",
        default="",
        metavar="NAME,NAME",
        help="tokens, prefix, pooled; default: scores of a fine-tuning or probe, else all features",
    )
    parser.add_argument(
        "--normalisation",
        choices=NORMALISATION,
        default="inside",
        help="whether mean and std are in the program, which then takes values from 0 to 1; default: %(default)s",
    )
    parser.add_argument("--setting", metavar="TITLE", help='of a probe, such as "rate 3"; default: the chosen one')
    parser.add_pairs('keys that RUN does not hold, or another size: DATA.image_size "[384,384]"')
    return cli.run(parser, _export, arguments)


def _export(args: argparse.Namespace) -> None:
    from mim.export import export

    features = tuple(args.features.split(",")) if args.features else ()
    for line in export(args.source, args.output, features, args.normalisation, args.setting, args.overrides):
        print(line)
