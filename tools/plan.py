"""Plan: what a run will be and cost, before it starts.

  python tools/plan.py --config FILE [--devices N ...] [--images N] [--classes N] [--measure [STEPS]] [--json FILE]
      [--assume NAME=NUMBER ...] [KEY VALUE ...]

Shows what the run will say at its start, shapes at every boundary, parameters, operations, memory, time, and how the
config differs from the recipe that it names; where --devices names several numbers, also what a step exchanges, holds
and takes on each of them, on paper. Nothing is trained, unless --measure asks for some steps on random images:
they are remembered in benchmarks/steps.jsonl, from which later plans on this machine take their images a second.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rich import get_console
from rich.console import Console

from mim.config.load import load_config
from mim.engine.log import log_to_console
from mim.io.files import write_json
from mim.lab.plan import Assumed, plan, show

STEPS = 5  # that --measure takes where it is not told


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    args = _parser().parse_intermixed_args(arguments)
    log_to_console(main=True)
    devices, behind = _until_a_key(args.devices)
    assumed, behind_them = _until_a_key(args.assume)
    try:
        cfg = load_config(args.config, [*args.overrides, *behind, *behind_them])
        counts = _whole(devices)
        with get_console().status("measuring steps" if args.measure else "planning"):
            planned = plan(
                cfg,
                devices=counts[0],
                others=counts[1:],
                assumed=Assumed.read(assumed),
                images=args.images,
                classes=args.classes,
                steps=args.measure,
                file=args.benchmarks,
            )
    except ValueError as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(planned, Console(), measure=_again(args, planned.classes))
    if args.json:
        write_json(args.json, planned.figures())
    return 0


def _until_a_key(words: list[str]) -> tuple[list[str], list[str]]:
    """What a flag takes, and the KEY VALUE pairs right behind it: keys begin with a capital."""
    place = next((place for place, word in enumerate(words) if word[:1].isupper()), len(words))
    return words[:place], words[place:]


def _whole(words: list[str]) -> list[int]:
    try:
        counts = list(map(int, words))
    except ValueError as error:
        raise ValueError(f"--devices is {' '.join(words)}: whole numbers, such as 1 8 64") from error
    if not counts or min(counts) < 1:
        raise ValueError(f"--devices is {' '.join(words)}: at least 1 device")
    return counts


def _again(args: argparse.Namespace, classes: int | None) -> str:
    """The command that measures what this one asked about; `classes` as in PlanReport."""
    given = [("--config", args.config), ("--classes", "N" if classes is None else args.classes)]
    flags = [str(word) for flag, value in given if value is not None for word in (flag, value)]
    return shlex.join(["python", "tools/plan.py", *flags, "--measure", *args.overrides])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a YAML recipe, such as configs/mae/vit_base.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as TRAIN.batch 512")
    parser.add_argument(
        "--devices", nargs="+", default=["1"], metavar="N",
        help="GPUs or processes of the run; several numbers, such as 1 8 64 1024, are laid side by side; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--assume", nargs="+", default=[], metavar="NAME=NUMBER",
        help="of the machines, for several --devices, such as mfu=0.5 network_gb_s=200; the plan lists all",
    )  # fmt: skip
    parser.add_argument("--images", type=int, help="training images, where the data set is not here")
    parser.add_argument("--classes", type=int, help="classes, where the data set of a classification is not here")
    parser.add_argument(
        "--measure", nargs="?", type=int, default=0, const=STEPS, metavar="STEPS",
        help=f"take real steps on this machine and remember what they cost; {STEPS} where no number is given",
    )  # fmt: skip
    parser.add_argument("--benchmarks", type=Path, default=Path("benchmarks/steps.jsonl"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
