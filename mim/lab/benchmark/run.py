"""A benchmark: the steps of a config and of what it is compared with, at one batch or at several."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from yacs.config import CfgNode

from mim import build
from mim.config.load import load_config
from mim.engine.distributed.world import World, join_world
from mim.engine.precision import DTYPES, resolve_precision
from mim.lab.benchmark.ceiling import Ceiling, Product
from mim.lab.benchmark.contenders import OURS, Side, eager, ours, own_images
from mim.lab.benchmark.machine import Machine, theme_of
from mim.lab.benchmark.peers import transformers_side
from mim.lab.benchmark.profiling import Profile, take_profile, visible_kernels
from mim.lab.benchmark.rounds import Figures, Ratio, Turns, ratio, take_turns
from mim.lab.dryrun.measure import TimedSteps
from mim.lab.dryrun.records import add_record
from mim.lab.dryrun.task import DryTask, dry_task
from mim.registry import one_of

AGAINST = ("transformers", "transformers-compiled", "transformers-unfused", "eager")
ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure. against: of AGAINST; batches: to try, empty for DATA.batch_size; rounds, turn: as in
    take_turns; real: on the config's own images; profile: also the time by kind of work; classes: where the data set of
    a classification is not here; steps_file: where measured steps are remembered, None for nowhere.
    """

    against: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    rounds: int = ROUNDS
    turn: int = 0
    real: bool = False
    profile: bool = False
    classes: int | None = None
    steps_file: Path | None = None

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in AGAINST:
                raise ValueError(f"--against is {name}: {one_of('', AGAINST)}")
        if len(set(self.against)) < len(self.against):
            raise ValueError(f"--against names one twice: {' '.join(self.against)}")
        if min(self.batches, default=1) < 1:
            raise ValueError(f"--batch-sizes is {' '.join(map(str, self.batches))}: each must be at least 1")
        if self.rounds < 1 or self.turn < 0:
            raise ValueError(f"--rounds is {self.rounds} and --steps {self.turn}: at least 1 round and 0 steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a benchmark found. theme: names the config; tries: at each batch; profiles: of sides at the best batch;
    strategy: DISTRIBUTED.strategy under torchrun, else empty.
    """

    theme: str
    machine: Machine
    date: datetime
    precision: str
    asked: Asked
    tries: tuple[Turns, ...]
    ceiling: Product
    profiles: tuple[Profile, ...]
    strategy: str = ""

    @property
    def batches(self) -> str:
        """The batches that were tried, in words."""
        shown = ", ".join(f"{found.batch:,}" for found in self.tries)
        return f"batch{'es' * (len(self.tries) > 1)} {shown}"

    def best_of(self, name: str) -> Figures | None:
        """The figures of a side where it was fastest; None where it always failed."""
        return max((held for found in self.tries if (held := found.of(name))), key=_speed, default=None)

    @property
    def best(self) -> Turns:
        """Where ours trained most images a second."""
        return max(self.tries, key=lambda found: _speed(found.of(OURS)))

    def best_ratios(self) -> list[Ratio]:
        """Of ours against every other side, each at its own best batch."""
        own, others = self.best_of(OURS), [self.best_of(name) for name in self.asked.against]
        return [ratio(own, other) for other in others if own is not None and other is not None]


def benchmark(
    config: Path, overrides: Sequence[str], asked: Asked, say: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Measures a config, with one micro-batch a step, on this machine's first device.

    Steps of ours are remembered in `asked.steps_file`, unless torchrun started this. Raises ValueError for what the
    user can mend.
    """
    cfgs = [_load(config, overrides, batch) for batch in asked.batches or (None,)]
    with join_world(build.engine_settings(cfgs[0]).distributed) as world:
        if world.size > 1:
            raise ValueError(f"torchrun started {world.size} processes: a benchmark is of one, --nproc_per_node 1")
        return _benchmark(config, cfgs, asked, world, say)


def _benchmark(
    config: Path, cfgs: Sequence[CfgNode], asked: Asked, world: World, say: Callable[[str], None]
) -> Outcome:
    device = world.device
    precision = resolve_precision(cfgs[0].TRAIN.precision, device)
    cfgs = [build.with_precision(cfg, precision) for cfg in cfgs]
    ceiling = Ceiling(DTYPES[precision], device)
    tries: list[Turns] = []
    profiles: tuple[Profile, ...] = ()
    ceiling.measure()  # before sides are built, so that its library is loaded when their memory is measured
    with visible_kernels() if asked.profile else nullcontext():
        for cfg in cfgs:
            _start_afresh()
            found, timed = _measure(cfg, asked, ceiling, world, say)
            tries.append(found)
            if asked.profile and _speed(found.of(OURS)) == max(_speed(one.of(OURS)) for one in tries):
                say("profiling")
                profiles = tuple(take_profile(name, held, device) for name, held in timed.items())
            del timed
    outcome = Outcome(
        theme=theme_of(config),
        machine=Machine.here(device),
        date=datetime.now(),
        precision=precision,
        asked=asked,
        tries=tuple(tries),
        ceiling=ceiling.best,
        profiles=profiles,
        strategy=cfgs[0].DISTRIBUTED.strategy if world.grouped else "",
    )
    if outcome.best_of(OURS) is None:
        raise ValueError(f"out of memory at DATA.batch_size {min(one.batch for one in tries)}: lower it")
    return outcome


def _load(config: Path, overrides: Sequence[str], batch: int | None) -> CfgNode:
    """The config with one micro-batch a step."""
    keys = list(overrides[::2])
    if "TRAIN.batch" in keys:
        raise ValueError("TRAIN.batch has no effect in a benchmark: a step is one micro-batch. Set DATA.batch_size")
    if batch is not None and "DATA.batch_size" in keys:
        raise ValueError("--batch-sizes and DATA.batch_size both say the batch: give one")
    cfg = load_config(config, [*overrides, *(["DATA.batch_size", str(batch)] if batch is not None else [])]).clone()
    cfg.defrost()
    cfg.TRAIN.batch = 0
    cfg.freeze()
    return cfg


def _measure(
    cfg: CfgNode, asked: Asked, ceiling: Ceiling, world: World, say: Callable[[str], None]
) -> tuple[Turns, dict[str, TimedSteps]]:
    """The turns at one batch, remembered."""
    held = dry_task(cfg, classes=asked.classes)
    if held.classes is None:
        raise ValueError("the classes are unknown: give their number with --classes N")
    if asked.real:
        own_images(held, "--real")
    sides, device = _sides(held, asked, world), world.device
    found, timed = take_turns(
        sides,
        ceiling,
        device,
        batch=cfg.DATA.batch_size,
        rounds=asked.rounds,
        turn=asked.turn,
        real=asked.real,
        say=say,
    )
    own = found.of(OURS)
    if asked.steps_file is not None and own is not None and not asked.real and not world.grouped:
        add_record(asked.steps_file, cfg, held.classes, device, timed[OURS].summarise(own.steps, accumulation=1))
    return found, timed


def _sides(held: DryTask, asked: Asked, world: World) -> list[Side]:
    run, device = held.plan(devices=1), world.device
    makers: dict[str, Callable[[], Side]] = {
        "eager": lambda: eager(held, run, world, real=asked.real),
        "transformers": lambda: transformers_side(held, run, device),
        "transformers-compiled": lambda: transformers_side(held, run, device, compiled=True),
        "transformers-unfused": lambda: transformers_side(held, run, device, fused=False),
    }
    return [ours(held, run, world, real=asked.real), *(makers[name]() for name in asked.against)]


def _start_afresh() -> None:
    """Graphs that were compiled at another batch would be compiled anew for any batch."""
    gc.collect()
    torch.compiler.reset()


def _speed(figures: Figures | None) -> float:
    return 0.0 if figures is None else figures.images_per_s
