"""Train: runs a config in a run folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mim import cli

TEXT = """Pretrains, fine-tunes or probes, as TASK of the config says, on this CPU or GPU, or on several under torchrun.
A run folder that holds an unfinished run is resumed by the same command."""
EXAMPLES = (
    "--config quickstart/mae_digits TRAIN.epochs 1",
    '--config mae/vit_base --output runs/plates DATA.path /data/plates DATA.image_size "[96,160]"',
    "--config mae/vit_base --extend 1600",
    "--keys MASKER",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("train", TEXT, EXAMPLES, cli.EXIT_CODES)
    config = parser.add_config()
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder; default: runs/<name of the config>")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="CHECKPOINT", help="resume from it, or from the last one, or fail"
    )
    parser.add_argument(
        "--extend",
        type=int,
        metavar="EPOCHS",
        help="prolong the finished run of the folder to EPOCHS epochs in all, from its last checkpoint with its "
        "optimizer; from there on the learning rate is that of a run of EPOCHS epochs",
    )
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="NAME",
        help="print keys and end: all, or MASKER, ENCODER.swin, HEAD.share; with --config also those of its PLUGINS",
    )
    words = cli.words(arguments)
    config.required = "--keys" not in words
    return cli.run(parser, _train, words)


def _train(args: argparse.Namespace) -> None:
    if args.keys is not None:
        from mim.config import load_config
        from mim.config.keys import keys_text

        mistake = ""
        if args.config:
            try:
                load_config(args.config, args.overrides)  # it imports the modules of PLUGINS
            except ValueError as error:  # perhaps the reason why the user asks for the keys
                mistake = f"\n{error}"
        try:
            print(keys_text(args.keys or None))
        except ValueError as error:
            raise ValueError(f"{error}{mistake}") from error
        return
    cli.check_config(args.config, args.overrides)
    cli.check_folder("--output", args.output)
    output = args.output or Path("runs") / Path(args.config).stem

    from mim.engine.checkpoint import last
    from mim.engine.run_folder import RunFolder
    from mim.run import train

    if args.resume == "" and last(RunFolder(output).checkpoints) is None:
        raise ValueError(f"--resume: {output} holds no checkpoint")
    train(args.config, args.overrides, output, resume=args.resume or None, extend=args.extend)
