"""A benchmark of training steps: a config and the contenders it is compared with, at one batch or at several."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from mim import build
from mim.build import load_config
from mim.config import Config
from mim.engine.distributed.world import World, join_world
from mim.engine.precision import DTYPES, resolve_precision
from mim.lab.benchmark.ceiling import Ceiling, MatrixProduct
from mim.lab.benchmark.contenders import OURS, Contender, ours, training_images
from mim.lab.benchmark.machine import Machine, theme_of
from mim.lab.benchmark.peers import transformers_contender
from mim.lab.benchmark.profiling import Profile, take_profile, visible_kernels
from mim.lab.benchmark.rounds import BatchResult, ContenderMetrics, Progress, Ratio, take_rounds
from mim.lab.dryrun.measure import TimedSteps
from mim.lab.dryrun.records import add_record
from mim.lab.dryrun.task import dry_task
from mim.registry import one_of

AGAINST = ("transformers", "transformers-compiled", "transformers-unfused", "eager")
ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSettings:
    """What to measure."""

    against: tuple[str, ...] = ()  # contenders, of AGAINST
    batches: tuple[int, ...] = ()  # to try as DATA.batch_size; empty for that of the config
    rounds: int = ROUNDS  # number of rounds
    steps: int = 0  # of each contender in a round; 0: see take_rounds
    real: bool = False  # whether ours trains on the config's own images, in place of random ones
    profile: bool = False  # whether a step is also profiled
    classes: int | None = None  # where the data set of a classification is not here
    records: Path | None = None  # file for the measured steps of ours; None for no file

    def __post_init__(self) -> None:
        for name in self.against:
            if name not in AGAINST:
                raise ValueError(f"--against is {name}: {one_of('', AGAINST)}")
        if len(set(self.against)) < len(self.against):
            raise ValueError(f"--against names a contender twice: {' '.join(self.against)}")
        if min(self.batches, default=1) < 1:
            raise ValueError(f"--batch-sizes is {' '.join(map(str, self.batches))}: each must be at least 1")
        if self.rounds < 1:
            raise ValueError(f"--rounds is {self.rounds}: it must be at least 1")
        if self.steps < 0:
            raise ValueError(f"--steps is {self.steps}: it must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """What a benchmark measured."""

    theme: str  # names the config
    machine: Machine
    date: datetime
    precision: str
    settings: BenchmarkSettings
    results: tuple[BatchResult, ...]  # at each batch
    ceiling: MatrixProduct  # the fastest matrix product
    profiles: tuple[Profile, ...]  # of each contender at the best batch
    strategy: str = ""  # DISTRIBUTED.strategy under torchrun, else empty

    @property
    def batches(self) -> str:
        """The batches, as text."""
        return f"batch{'es' * (len(self.results) > 1)} {', '.join(f'{result.batch:,}' for result in self.results)}"

    @property
    def best(self) -> BatchResult:
        """The batch at which ours was fastest."""
        return max(self.results, key=lambda result: result.our_speed)

    def best_of(self, name: str) -> ContenderMetrics | None:
        """A contender at the batch at which it was fastest; None where it always ran out of memory."""
        metrics = [metric for result in self.results if (metric := result.of(name)) is not None]
        return max(metrics, key=lambda metrics: metrics.images_per_s, default=None)

    def best_ratios(self) -> list[Ratio]:
        """Ours against each other contender, each at its own best batch."""
        best, others = self.best_of(OURS), [self.best_of(name) for name in self.settings.against]
        return [Ratio.of(best, other) for other in others if best is not None and other is not None]


def run_benchmark(
    config: str | Path, overrides: Sequence[str], settings: BenchmarkSettings, progress: Progress = lambda line: None
) -> BenchmarkResult:
    """Measures steps of one micro-batch of a config, on the first device of this machine.

    Under torchrun nothing is recorded. Raises ValueError for what the user can mend.
    """
    cfgs = [_load(config, overrides, batch) for batch in settings.batches or (None,)]
    with join_world(build.engine_settings(cfgs[0]).distributed) as world:
        if world.size > 1:
            raise ValueError(f"torchrun started {world.size} processes: a benchmark needs --nproc_per_node 1")
        precision = resolve_precision(cfgs[0].TRAIN.precision, world.device)
        cfgs = [cfg.replace({"TRAIN.precision": precision}) for cfg in cfgs]
        ceiling = Ceiling(DTYPES[precision], world.device)
        results, profiles = _measure_all(cfgs, settings, ceiling, world, progress)
        result = BenchmarkResult(
            theme=theme_of(config),
            machine=Machine.here(world.device),
            date=datetime.now(),
            precision=precision,
            settings=settings,
            results=results,
            ceiling=ceiling.best,
            profiles=profiles,
            strategy=cfgs[0].DISTRIBUTED.strategy if world.grouped else "",
        )
    if result.best_of(OURS) is None:
        raise ValueError(f"out of memory at DATA.batch_size {min(each.batch for each in results)}: lower it")
    return result


def _load(config: str | Path, overrides: Sequence[str], batch: int | None) -> Config:
    """The config with one micro-batch per step."""
    keys = list(overrides[::2])
    if "TRAIN.batch" in keys:
        raise ValueError("TRAIN.batch has no effect in a benchmark: a step is one micro-batch. Set DATA.batch_size")
    if batch is not None and "DATA.batch_size" in keys:
        raise ValueError("--batch-sizes and DATA.batch_size both set the batch: give one")
    cfg = load_config(config, [*overrides, *(["DATA.batch_size", str(batch)] if batch is not None else [])])
    return cfg.replace({"TRAIN.batch": 0})


def _measure_all(
    cfgs: Sequence[Config], settings: BenchmarkSettings, ceiling: Ceiling, world: World, progress: Progress
) -> tuple[tuple[BatchResult, ...], tuple[Profile, ...]]:
    """The result at each batch, and the profiles at the best one."""
    results: list[BatchResult] = []
    profiles: tuple[Profile, ...] = ()
    ceiling.measure()  # first, so that no contender's memory includes its library
    with visible_kernels() if settings.profile else nullcontext():
        for cfg in cfgs:
            gc.collect()
            torch.compiler.reset()  # a graph compiled at another batch would be compiled again for any batch
            result, trainers = _measure(cfg, settings, ceiling, world, progress)
            if settings.profile and result.our_speed > max((each.our_speed for each in results), default=0.0):
                progress("profiling")
                profiles = tuple(take_profile(name, timed, world.device) for name, timed in trainers.items())
            results.append(result)
            del trainers
    return tuple(results), profiles


def _measure(
    cfg: Config, settings: BenchmarkSettings, ceiling: Ceiling, world: World, progress: Progress
) -> tuple[BatchResult, dict[str, TimedSteps]]:
    """The result at one batch, which is also recorded, and the trainers."""
    dry, device = dry_task(cfg, classes=settings.classes), world.device
    if dry.classes is None:
        raise ValueError("the number of classes is unknown: give it with --classes N")
    if settings.real:
        training_images(dry, "--real")
    plan = dry.plan(devices=1)
    makers: dict[str, Callable[[], Contender]] = {
        "eager": lambda: ours(dry, plan, world, real=settings.real, compiled=False),
        "transformers": lambda: transformers_contender(dry, plan, device),
        "transformers-compiled": lambda: transformers_contender(dry, plan, device, compiled=True),
        "transformers-unfused": lambda: transformers_contender(dry, plan, device, fused=False),
    }
    result, trainers = take_rounds(
        [ours(dry, plan, world, real=settings.real), *(makers[name]() for name in settings.against)],
        ceiling,
        device,
        batch=cfg.DATA.batch_size,
        rounds=settings.rounds,
        steps=settings.steps,
        real=settings.real,
        progress=progress,
    )
    metrics = result.of(OURS)
    if settings.records is not None and metrics is not None and not settings.real and not world.grouped:
        measured = trainers[OURS].summarise(metrics.steps, accumulation=1)
        add_record(settings.records, cfg, dry.classes, device, measured)
    return result, trainers
