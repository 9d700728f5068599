"""Plan: what a run will be and cost, before it starts."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mim import cli

TEXT = """Shows what a run will say at its start, shapes at every boundary, parameters, operations, memory, time, and
how the config differs from the recipe that it names. For several --devices, and for GPUs that are not here, it computes
on paper what a step exchanges, holds and takes, from figures that are assumed: those of --gpu NAME are of its data
sheet, and --assume sets each. Nothing is trained, unless --measure takes some steps on random images: they are
remembered in benchmarks/steps.jsonl, from which later plans on this machine take their images per second."""
EXAMPLES = (
    "--config mae/vit_base --images 1281167",
    "--config mae/vit_base --images 1281167 --devices 64 --gpu a100-80",
    "--config mae/vit_huge --images 1281167 --devices 1 8 64 --assume mfu=0.5",
    "--config quickstart/mae_digits --measure",
)
STEPS = 5  # of --measure without a number


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    parser = cli.Parser("plan", TEXT, EXAMPLES)
    parser.add_config()
    parser.add_argument(
        "--devices", nargs="+", default=["1"], metavar="N", help="GPUs; several numbers are compared; default: 1"
    )
    parser.add_argument(
        "--gpu",
        default="",
        metavar="NAME",
        help="GPUs to assume: h100, a100-80, rtx4090 ...; an unknown name lists all",
    )
    parser.add_argument("--assume", nargs="+", default=[], metavar="NAME=N", help="a figure of theirs, such as mfu=0.5")
    parser.add_argument("--images", type=int, metavar="N", help="training images, where the data set is not here")
    parser.add_argument("--classes", type=int, metavar="N", help="classes, where the data set is not here")
    parser.add_argument(
        "--measure", nargs="?", type=int, default=0, const=STEPS, metavar="STEPS",
        help=f"take real steps on this machine; default: {STEPS}",
    )  # fmt: skip
    parser.add_argument(
        "--benchmarks", type=Path, default=Path("benchmarks/steps.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_json()
    return cli.run(parser, _plan, arguments)


def _plan(args: argparse.Namespace) -> None:
    devices, pairs = cli.split_at_key(args.devices)
    assumptions, more_pairs = cli.split_at_key(args.assume)
    counts = cli.whole_numbers("--devices", devices, "1 8 64")
    if not counts or min(counts) < 1:
        raise ValueError(f"--devices is {' '.join(devices)}: at least 1 device")
    overrides = [*args.overrides, *pairs, *more_pairs]
    cli.check_config(args.config, overrides)

    from rich import get_console
    from rich.console import Console

    from mim.build import load_config
    from mim.io.files import write_json
    from mim.lab.plan import HardwareChoice, plan_run, show

    hardware = HardwareChoice.read(args.gpu, assumptions) if args.gpu or assumptions else None
    cfg = load_config(args.config, overrides)
    with get_console().status("measuring steps" if args.measure else "planning"):
        report = plan_run(
            cfg,
            devices=counts[0],
            other_devices=counts[1:],
            hardware=hardware,
            images=args.images,
            classes=args.classes,
            steps=args.measure,
            records=args.benchmarks,
        )
    show(report, Console(), measure=_measuring_command(args, report.classes))
    if args.json:
        write_json(args.json, report.to_json())


def _measuring_command(args: argparse.Namespace, classes: int | None) -> str:
    """The command that measures what this one asked about; classes: as in PlanReport."""
    flags = [("--config", args.config), ("--classes", "N" if classes is None else args.classes)]
    words = [str(word) for flag, value in flags if value is not None for word in (flag, value)]
    return shlex.join([*cli.command_words("plan"), *words, "--measure", *args.overrides])
