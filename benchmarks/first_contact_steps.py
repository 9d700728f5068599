"""The steps of first_contact.py: what each runs, how long it may take, and the same at a tiny size."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {"first": 480.0, "second": 300.0}  # seconds of each call
TEST_PROCESSES = 4  # that share the GPU; importing and compiling take longest
TINY_PATIENCE = 6  # a CPU compiles a small model for longer than a GPU machine with many cores
Call = Literal["first", "second"]
IMAGE = {"DATA.image_size": "[32, 32]"}
VIT = {"ENCODER.patch": "8", "ENCODER.width": "16", "ENCODER.depth": "1", "ENCODER.heads": "2"}
SWIN = {"ENCODER.width": "8", "ENCODER.depths": "[1, 1]", "ENCODER.heads": "[1, 2]", "ENCODER.window": "4"}
TINY = {  # keys with which a recipe trains in milliseconds
    "mae": IMAGE | VIT | {"MASKER.cell": "8", "HEAD.width": "16", "HEAD.depth": "1", "HEAD.heads": "2"},
    "simmim/vit": IMAGE | VIT | {"MASKER.cell": "8"},
    "simmim/swin": IMAGE | SWIN | {"MASKER.cell": "8"},
}
OLD_TESTS = (  # those that need a GPU and stand beside what they test
    "tests/engine/test_step.py::test_step_on_a_gpu_never_makes_the_host_wait",
    "tests/engine/test_step.py::test_feed_prefetches_the_same_batches",
    "tests/data/loading/test_loader.py::test_loader_pins_batches_for_a_gpu_and_keeps_their_order",
    "tests/lab/dryrun/test_memory.py::test_estimated_memory_is_what_a_gpu_takes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process of a call. In `command`, {figures} is a file for figures, {seconds} how long the step may take."""

    name: str
    call: Call
    command: tuple[str, ...]
    limit_s: float  # after which it is stopped
    least_s: float  # with less it is not begun
    packages: tuple[str, ...] = ()  # without which it is skipped
    reason: str = ""  # why it must be skipped
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the steps are made for."""

    tiny: bool
    scratch: Path  # a folder that is removed at the end
    data: Path | None  # CIFAR-10
    photos: Path | None  # a folder of JPEG files
    environment: dict[str, str]  # of each process
    patience: int = 1  # factor of all limits

    @classmethod
    def of(cls, args: argparse.Namespace, scratch: Path, site: Path) -> Self:
        """From the command line; site: where wheels were installed."""
        paths = [str(path) for path in (site, ROOT, ROOT / "tools") if path.exists()]
        paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
        data, photos = (path and path.resolve() for path in (args.data, args.photos))
        patience = TINY_PATIENCE if args.tiny else 1
        return cls(
            tiny=args.tiny,
            scratch=scratch,
            data=data,
            photos=photos,
            environment=environment,
            patience=patience,
        )


def steps_of(choice: Choice, call: str, names: Sequence[str] = ()) -> list[Step]:
    """The steps of a call ("both": of the two), or those with these names. Raises ValueError for an unknown name."""
    steps = [step for step in [*_first(choice), *_second(choice)] if call in (step.call, "both")]
    allowed = [step.name for step in steps]
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"--steps {unknown[0]}: no such step. Allowed: {', '.join(allowed)}")
    return [step for step in steps if not names or step.name in names]


def _first(choice: Choice) -> list[Step]:
    mae, vit, swin = "mae/vit_base", "simmim/vit_base_800ep", "simmim/swin_base_100ep"
    both = ("--compile", "--against", "eager", "transformers")
    return [
        _part(choice, "environment", "first", 60, 5),
        _gpu_tests(choice),
        _training(choice, "first", mae, 256, *both, "--profile", limit_s=130),
        _training(choice, "first", vit, 256, *both, limit_s=110),
        _training(choice, "first", swin, 256, "--no-compile", "--against", "transformers", limit_s=70),
        _training(choice, "first", "mae/vit_large", 256, *both, limit_s=120),
        _attention(choice),
    ]


def _second(choice: Choice) -> list[Step]:
    compiled = ("--compile", "--against", "transformers", "transformers-compiled")
    reason = "" if choice.data or choice.tiny else "no CIFAR-10: give --data or DATA"
    source = () if choice.data is None else ("--data", str(choice.data))
    photos = () if choice.photos is None else ("--photos", str(choice.photos))
    huge, tiny = "mae/vit_huge", "cifar10/mae_vit_tiny"
    return [
        _part(choice, "cifar10", "second", 170, 60, "--seconds", "{seconds}", *source, reason=reason),
        _training(choice, "second", huge, 128, "--no-compile", limit_s=40, least_s=20, strategy="fsdp"),
        _training(choice, "second", huge, 128, "--no-compile", limit_s=40, least_s=20, strategy="ddp"),
        _part(choice, "loader", "second", 60, 30, *photos),
        _training(choice, "second", "mae/vit_base", 1024, *compiled, limit_s=90),
        _training(choice, "second", "simmim/vit_base_800ep", 512, *compiled, limit_s=90),
        _training(choice, "second", "simmim/swin_base_100ep", 128, "--compile", "--against", "eager", limit_s=150),
        _training(choice, "second", "mae/vit_large", 512, *compiled, limit_s=100),
        _training(choice, "second", tiny, 512, "--compile", "--against", "eager", "--profile", limit_s=80),
        _training(choice, "second", tiny, 128, limit_s=60, keys={"TRAIN.compile": "max"}),
        _training(choice, "second", "mae/vit_base", 256, limit_s=60, keys={"TRAIN.compile": "max"}),
        _training(choice, "second", huge, 128, "--no-compile", limit_s=40, least_s=20),
    ]


def _part(choice: Choice, name: str, call: Call, limit_s: float, least_s: float, *words: str, reason: str = "") -> Step:
    """A command of first_contact_parts.py."""
    tiny = ("--tiny",) if choice.tiny else ()
    start = (sys.executable, "benchmarks/first_contact_parts.py", name, "--figures", "{figures}")
    command = (*start, "--scratch", str(choice.scratch / name), *tiny, *words)
    return Step(name=name, call=call, command=command, limit_s=limit_s, least_s=least_s, reason=reason)


def _gpu_tests(choice: Choice) -> Step:
    """The tests that need a GPU; at tiny size those that also run on a CPU."""
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-vv", "-rfE", "--durations", "5"]
    words += ["--tb", "short", "--show-capture", "no"]  # the record has room for the end of the output alone
    if not choice.tiny and importlib.util.find_spec("xdist"):
        words += ["-p", "xdist", "-n", str(TEST_PROCESSES), "--dist", "worksteal"]
    tests = ("tests/gpu",) if choice.tiny else ("tests/gpu", *OLD_TESTS)
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | ({"MIM_TEST_DEVICE": "cpu"} if choice.tiny else {})
    return Step(
        name="GPU tests", call="first", command=(sys.executable, *words, *tests), limit_s=150, least_s=30,
        packages=("pytest",), environment=environment,
    )  # fmt: skip


def _training(
    choice: Choice, call: Call, config: str, batch: int, *words: str, limit_s: float, least_s: float = 40,
    strategy: str = "", keys: Mapping[str, str] | None = None,
) -> Step:  # fmt: skip
    """tools/benchmark.py on a recipe at one batch; with a strategy under torchrun, in a group of one process."""
    kind = config.partition("_")[0] if config.startswith("simmim") else "mae"
    changed = {**(TINY[kind] if choice.tiny else {}), **(keys or {})}
    pairs = [word for pair in changed.items() for word in pair]
    size = ["--rounds", "2", "--steps", "1", "--batch-sizes", "4"] if choice.tiny else ["--rounds", "3"]
    size += [] if choice.tiny else ["--batch-sizes", str(batch)]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1") if strategy else ()
    pairs += ["DISTRIBUTED.strategy", strategy] if strategy else []
    command = (
        *(sys.executable, *launcher, "tools/benchmark.py", "--config", f"configs/{config}.yaml", *words, *size),
        *("--folder", str(choice.scratch / "benchmarks"), "--json", "{figures}", *pairs),
    )
    own = [f"{key} {value}" for key, value in (keys or {}).items()]
    details = ["compiled" if "--compile" in words else "", strategy, *own]
    name = ", ".join([f"{config} at {batch}", *filter(None, details)])
    packages = ("transformers",) if "transformers" in words else ()
    return Step(name=name, call=call, command=command, limit_s=limit_s, least_s=least_s, packages=packages)


def _attention(choice: Choice) -> Step:
    """benchmarks/attention.py."""
    size = ("--batch", "1", "--rounds", "1") if choice.tiny else ("--rounds", "5")
    command = (sys.executable, "benchmarks/attention.py", *size)
    return Step(name="attention", call="first", command=command, limit_s=80, least_s=20)
