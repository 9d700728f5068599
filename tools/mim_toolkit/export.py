"""Export: the encoder or the predictor of a checkpoint as a program, or a run as a Hugging Face folder."""

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
and pooled (the mean of the patch tokens).

With --format huggingface it writes a folder for a hub from a run folder: the encoder, its config, and a model card with
data, recipe, figures and limits. --push uploads it, too, with the token of `hf auth login` or HF_TOKEN."""
EXAMPLES = (
    "runs/mae --output encoder.onnx --features pooled",
    "runs/finetune --output classifier.onnx",
    "runs/mae --output encoder.pt2 --normalisation outside",
    "runs/mae --format huggingface --output plates-mae --license cc-by-4.0 --push me/plates-mae --private",
)
FORMATS = ("program", "huggingface")
NORMALISATION = ("inside", "outside")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("export", TEXT, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="RUN", help="run folder, checkpoint, or a file of weights")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="to write: .onnx, .pt2 or a folder")
    parser.add_argument("--format", choices=FORMATS, default="program", help="what to write; default: %(default)s")
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
    _add_folder_options(parser)
    parser.add_pairs('keys that RUN does not hold, or another size: DATA.image_size "[384,384]"')
    return cli.run(parser, _export, arguments)


def _add_folder_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("options of --format huggingface")
    group.add_argument(
        "--license", default="", metavar="NAME", help="of the weights, such as apache-2.0; default: none"
    )
    group.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=(),
        metavar="RUN",
        help="runs of the same recipe with other seeds, for intervals; those beside RUN are found without",
    )
    group.add_argument("--push", default="", metavar="OWNER/NAME", help="repository at the hub to upload to")
    group.add_argument("--private", action="store_true", help="create the repository as private")
    group.add_argument("--revision", default="", metavar="BRANCH", help="to upload to; default: main")


def _export(args: argparse.Namespace) -> None:
    if args.format == "huggingface":
        lines = _write_folder(args)
    else:
        from mim.export import export

        _refuse(args, "huggingface", "license", "runs", "push", "private", "revision")
        features = tuple(args.features.split(",")) if args.features else ()
        lines = export(args.source, args.output, features, args.normalisation, args.setting, args.overrides)
    for line in lines:
        print(line)


def _write_folder(args: argparse.Namespace) -> list[str]:
    from mim.lab.card import Request, write_folder

    _refuse(args, "program", "features", "setting", "overrides")
    if args.normalisation != NORMALISATION[0]:
        raise ValueError(f"--normalisation is {args.normalisation}: --format huggingface never normalises inside")
    if not args.push and (args.private or args.revision):
        raise ValueError("--private and --revision are of --push OWNER/NAME: name it, or leave them out")
    request = Request(args.license, tuple(args.runs), args.push, args.private, args.revision)
    return write_folder(args.source, args.output, request)


def _refuse(args: argparse.Namespace, other: str, *names: str) -> None:
    """Raises ValueError where an option of another format is given."""
    for name in names:
        if getattr(args, name):
            title = "KEY VALUE pairs are" if name == "overrides" else f"--{name} is"
            raise ValueError(f"{title} of --format {other}, and --format is {args.format}: leave one of them out")
