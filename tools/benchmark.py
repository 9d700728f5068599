"""Benchmark: how fast a config trains on this machine, in turns with what it is compared with.

  python tools/benchmark.py --config FILE [--against SIDE ...] [--compile]
      [--batch-sizes 64 128 256] [--profile] [--real] [--data] [--no-write] [--json FILE] [KEY VALUE ...]

Takes real training steps, on random images unless --real, and shows images a second, the time of each phase, memory,
and the share of this machine's own matrix products that the model's operations reach. All sides run in this process in
turn, so that ratios hold whatever else the machine does. The result is added to a file in benchmarks/, of the config,
the hardware and the day.
"""

import argparse
import sys
from pathlib import Path

from rich import get_console
from rich.console import Console

from mim.engine.log import log_to_console
from mim.io.files import write_json
from mim.lab import benchmark as benchmarks
from mim.lab.benchmark import AGAINST, ROUNDS, Asked, LoadingOutcome, Outcome, benchmark, benchmark_loading


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    given = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_intermixed_args(given)
    log_to_console(main=True)
    against, behind = _until_a_key(args.against)
    batches, behind_them = _until_a_key(args.batch_sizes)
    compiled = [] if args.compile is None else ["TRAIN.compile", str(args.compile).lower()]
    overrides = [*args.overrides, *behind, *behind_them, *compiled]
    try:
        if args.data:
            with get_console().status("reading images"):
                loaded = benchmark_loading(args.config, overrides, args.files, args.rounds)
            return _tell(loaded, args, given)
        asked = Asked(
            against=tuple(against),
            batches=_whole(batches),
            rounds=args.rounds,
            turn=args.steps,
            real=args.real,
            profile=args.profile,
            classes=args.classes,
            steps_file=None if args.no_write else args.folder / "steps.jsonl",
        )
        with get_console().status("preparing") as status:
            outcome = benchmark(args.config, overrides, asked, status.update)
    except ValueError as error:
        if args.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _tell(outcome, args, given)


def _tell(outcome: Outcome | LoadingOutcome, args: argparse.Namespace, given: list[str]) -> int:
    benchmarks.show(outcome, Console())
    if not args.no_write:
        print("Written: " + ", ".join(map(str, benchmarks.write(outcome, args.folder, given))))
    if args.json:
        write_json(args.json, benchmarks.figures(outcome, given))
    return 0


def _until_a_key(words: list[str]) -> tuple[list[str], list[str]]:
    """What a flag takes, and the KEY VALUE pairs right behind it: keys begin with a capital."""
    place = next((place for place, word in enumerate(words) if word[:1].isupper()), len(words))
    return words[:place], words[place:]


def _whole(words: list[str]) -> tuple[int, ...]:
    try:
        return tuple(map(int, words))
    except ValueError as error:
        raise ValueError(f"--batch-sizes is {' '.join(words)}: whole numbers, such as 64 128") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a YAML recipe, such as configs/mae/vit_base.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="such as DATA.batch_size 16")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="SIDE",
        help=f"any of {', '.join(AGAINST)}. transformers: that library's model of the same size, trained as its "
        "Trainer does; transformers-compiled: the same under torch.compile; transformers-unfused: with torch's AdamW "
        "as it is by default, as in their loops without a Trainer; eager: ours without torch.compile",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="TRAIN.compile true or false; default: as the config"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", default=[], metavar="N",
        help="try each as DATA.batch_size; one for which the memory is too small is passed over",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="of a side in a round; default: as many as take half a second, on a GPU two",
    )
    parser.add_argument("--real", action="store_true", help="on the config's own images, read by its loader processes")
    parser.add_argument(
        "--data", action="store_true",
        help="the loader alone instead, on one core, in turns with torchvision's ImageFolder and MAE's published crops",
    )  # fmt: skip
    parser.add_argument(
        "--files", type=Path, metavar="DIR",
        help="with --data: class folders that torchvision reads; default: DATA.path, or train/ below it",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true", help="also the time by kind of work, as tables and a picture")
    parser.add_argument("--classes", type=int, help="classes, where the data set of a classification is not here")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks"), help="of results; default: %(default)s")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


if __name__ == "__main__":
    sys.exit(main())
