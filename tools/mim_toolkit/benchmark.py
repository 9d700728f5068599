"""Benchmark: how fast a config trains on this machine, against others."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mim import cli

TEXT = """Takes real training steps, on random images unless --real, and shows images per second, the time of each
phase, memory, and the share of this machine's matrix products that the model reaches. All contenders run in this
process in rounds, so that ratios hold whatever else the machine does. The result is added to a file in benchmarks/,
named after the config, the hardware and the day.

Contenders for --against: transformers (a model of that library of the same size, trained as its Trainer does),
transformers-compiled (under torch.compile), transformers-unfused (torch's default AdamW), eager (ours without
torch.compile).

With --to-accuracy, ours and peers (--against transformers lightly stable-pretraining) train on the images of the config
for --budget seconds each, in turns, and are judged by kNN and by a linear probe as they train: how much sooner does
ours reach a peer's best accuracy?"""
EXAMPLES = (
    "--config quickstart/mae_digits --against transformers",
    "--config mae/vit_base --compile --batch-sizes 64 128 256 --profile",
    "--config mae/vit_base --data DATA.path /data/photos",
    "--config cifar10/mae_vit_tiny --to-accuracy --against lightly --ours HEAD.name cross_attention HEAD.share 0.5",
)
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of mim.errors.ExitCode."""
    words = cli.words(arguments)
    return cli.run(parser(), partial(_benchmark, words), words)


def parser() -> cli.Parser:
    """The parser of this command."""
    parser = cli.Parser("benchmark", TEXT, EXAMPLES)
    parser.add_config()
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME", help="contenders, see above")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="TRAIN.compile true or false; default: as is"
    )
    parser.add_argument("--batch-sizes", nargs="+", default=[], metavar="N", help="try each as DATA.batch_size")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="steps in a round; default: 0.5 s (GPU: 2)")
    parser.add_argument("--real", action="store_true", help="train on the images of the config")
    parser.add_argument("--data", action="store_true", help="measure the loader alone, against torchvision")
    parser.add_argument("--files", type=Path, metavar="DIR", help="of --data: class folders; default: DATA.path")
    parser.add_argument("--to-accuracy", action="store_true", help="train against the clock and against peers")
    parser.add_argument(
        "--budget", type=float, default=600.0, metavar="S", help="seconds of training of a side; default: %(default)g"
    )
    parser.add_argument(
        "--every", type=float, default=30.0, metavar="S", help="seconds between evaluations; default: %(default)g"
    )
    parser.add_argument("--seeds", nargs="+", default=["0"], metavar="N", help="of --to-accuracy; default: 0")
    parser.add_argument(
        "--ours", nargs="+", default=[], metavar="KEY VALUE", help="keys of ours alone, not of peers; the last flag"
    )
    parser.add_argument("--profile", action="store_true", help="also the time by kernel class, with a picture")
    parser.add_argument("--classes", type=int, metavar="N", help="classes, where the data set is not here")
    parser.add_argument(
        "--folder", type=Path, default=Path("benchmarks"), metavar="DIR", help="of results; default: %(default)s"
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_json()
    return parser


def _benchmark(words: list[str], args: argparse.Namespace) -> None:
    cli.check_folder("--folder", args.folder)
    pairs: list[str] = []
    for flag in ("against", "batch_sizes", "seeds"):
        values, more = cli.split_at_key(getattr(args, flag))
        setattr(args, flag, values)
        pairs += more
    compiled = [] if args.compile is None else ["TRAIN.compile", str(args.compile).lower()]
    overrides = [*args.overrides, *pairs, *compiled]
    args.batch_sizes = cli.whole_numbers("--batch-sizes", args.batch_sizes, "64 128")
    args.seeds = cli.whole_numbers("--seeds", args.seeds, "0 1 2")
    cli.check_config(args.config, overrides)
    if args.ours:
        cli.check_config(args.config, [*overrides, *args.ours])

    from rich import get_console
    from rich.console import Console

    from mim.io.files import write_json
    from mim.lab import benchmark as lab

    with get_console().status("preparing") as status:
        outcome = _measure(args, overrides, status.update)
    lab.show(outcome, Console())
    if not args.no_write:
        print("Written: " + ", ".join(map(str, lab.write(outcome, args.folder, words))))
    if args.json:
        write_json(args.json, lab.to_json(outcome, words))


def _measure(args: argparse.Namespace, overrides: list[str], progress: Callable[[str], None]) -> Any:
    """The result of the kind that the flags ask for."""
    from mim.lab import benchmark as lab

    if args.data:
        progress("reading images")
        return lab.benchmark_loading(args.config, overrides, args.files, args.rounds)
    if args.to_accuracy:
        race = lab.AccuracySettings(
            against=tuple(args.against),
            ours=tuple(args.ours),
            budget=args.budget,
            every=args.every,
            seeds=args.seeds,
        )
        return lab.run_to_accuracy(args.config, overrides, race, progress)
    settings = lab.BenchmarkSettings(
        against=tuple(args.against),
        batches=args.batch_sizes,
        rounds=args.rounds,
        steps=args.steps,
        real=args.real,
        profile=args.profile,
        classes=args.classes,
        records=None if args.no_write else args.folder / "steps.jsonl",
    )
    return lab.run_benchmark(args.config, overrides, settings, progress)
