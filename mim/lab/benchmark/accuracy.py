"""Time to an accuracy: ours and peers train on the same images against the clock, in turns in one process."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Literal

from mim import build
from mim.build import load_config
from mim.config import Config
from mim.engine.distributed.world import World, join_world
from mim.engine.precision import resolve_precision
from mim.lab.benchmark.contenders import OURS
from mim.lab.benchmark.judge import Judge
from mim.lab.benchmark.machine import Machine, theme_of
from mim.lab.benchmark.peer_models import PEER_MODELS, build_peer
from mim.lab.benchmark.rounds import Progress
from mim.lab.benchmark.sides import OurSide, PeerSide, Side, TimedRun
from mim.lab.dryrun.task import dry_task
from mim.registry import one_of
from mim.tasks.pretrain import Pretrain

Measure = Literal["knn", "probe"]
MEASURES: dict[Measure, str] = {"knn": "kNN", "probe": "probe"}  # with their names in text
SLICE_S = 5.0  # of training of one side at a time
OURS_ALONE = ("MASKER", "HEAD", "TARGET", "LOSS", "OPTIMIZER", "SCHEDULE")  # sections that --ours may change
KEYS_OF_OURS = (  # and keys of other sections
    *("DATA.name", "DATA.path", "DATA.repeats", "DATA.masks", "DATA.workers"),
    *("TRAIN.epochs", "TRAIN.compile", "TRAIN.clip", "TRAIN.ema"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracySettings:
    """What to measure."""

    against: tuple[str, ...] = ("transformers",)  # peers, of PEER_MODELS
    ours: tuple[str, ...] = ()  # KEY VALUE pairs of ours alone
    budget: float = 600.0  # seconds of training of each side
    every: float = 30.0  # seconds of training between two evaluations
    seeds: tuple[int, ...] = (0,)  # each in place of SEED, one after the other

    def __post_init__(self) -> None:
        if not self.against:
            raise ValueError(f"--to-accuracy needs a peer: name it with --against ({', '.join(PEER_MODELS)})")
        for name in self.against:
            if name not in PEER_MODELS:
                raise ValueError(f"--against is {name}: with --to-accuracy it must be {one_of('', PEER_MODELS)}")
        for flag, values in (("--against", self.against), ("--seeds", self.seeds)):
            if len(set(values)) < len(values) or not values:
                raise ValueError(f"{flag} is {' '.join(map(str, values))}: name each once, and at least one")
        if self.every <= 0 or self.budget < self.every:
            raise ValueError(
                f"--budget is {self.budget:g} and --every {self.every:g}: both are seconds above 0, and the budget is "
                "at least as long as the time between evaluations"
            )
        for key in self.ours[::2]:
            if key.split(".")[0] not in OURS_ALONE and key not in KEYS_OF_OURS:
                raise ValueError(
                    f"--ours changes {key}: backbone, images, batch and precision are the same for all sides. Give it "
                    f"before --ours; ours alone may have {', '.join(OURS_ALONE)} and {', '.join(KEYS_OF_OURS)}"
                )


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    seconds: float  # of training so far
    images: int  # trained on so far; each crop counts
    knn: float  # share of held-out images that are classified correctly by their neighbours
    probe: float | None  # the same by a linear probe; None: it has not converged

    def accuracy(self, measure: Measure) -> float:
        """By neighbours or by the probe; 0 where that has not converged."""
        return self.knn if measure == "knn" else self.probe or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A side with one seed."""

    name: str  # `ours`, or as in --against
    seed: int
    model: str  # the model and how it is run, as text
    parameters: int  # number of trained parameters
    differences: tuple[str, ...]  # from ours, a line each
    points: tuple[Point, ...]  # the first before any training

    def start(self, measure: Measure) -> float:
        """The accuracy of random weights."""
        return self.points[0].accuracy(measure)

    def best(self, measure: Measure) -> Point:
        """The first of the best evaluations of trained weights."""
        return max(self.points[1:], key=lambda point: point.accuracy(measure))

    def seconds_to(self, measure: Measure, accuracy: float) -> float | None:
        """Seconds of training until the first evaluation that reaches this accuracy; None where none does."""
        return next((point.seconds for point in self.points[1:] if point.accuracy(measure) >= accuracy), None)


@dataclass(frozen=True, slots=True)
class TimeRatio:
    """How much sooner ours reached a peer's best accuracy, with one seed."""

    against: str  # the peer
    seed: int
    measure: Measure
    accuracy: float  # the peer's best
    theirs_s: float  # seconds that the peer needed
    ours_s: float | None  # seconds that ours needed; None where it did not reach it
    trained: bool  # whether that accuracy is above that of the random weights of both

    @property
    def ratio(self) -> float | None:
        """Their seconds over ours."""
        return None if self.ours_s is None else self.theirs_s / self.ours_s


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """What a benchmark of time to an accuracy measured."""

    theme: str  # names the config
    machine: Machine
    date: datetime
    precision: str
    batch: int  # images of an optimizer step
    images: tuple[int, int]  # number of training images that neighbours are searched in, and of held-out ones
    settings: AccuracySettings
    curves: tuple[Curve, ...]  # of each side, seed by seed

    @property
    def names(self) -> tuple[str, ...]:
        """The sides."""
        return (OURS, *self.settings.against)

    def of(self, name: str) -> list[Curve]:
        """The curves of a side."""
        return [curve for curve in self.curves if curve.name == name]

    def ratios(self, against: str, measure: Measure) -> list[TimeRatio]:
        """Ours against a peer, for each seed."""
        ratios = []
        for ours, theirs in zip(self.of(OURS), self.of(against), strict=True):
            best = theirs.best(measure)
            accuracy = best.accuracy(measure)
            trained = accuracy > max(ours.start(measure), theirs.start(measure))
            seconds = ours.seconds_to(measure, accuracy)
            ratios.append(TimeRatio(against, ours.seed, measure, accuracy, best.seconds, seconds, trained))
        return ratios

    def median_ratio(self, against: str, measure: Measure) -> float | None:
        """The median over seeds; None where one of them has no ratio, or one that says nothing."""
        ratios = [each.ratio if each.trained else None for each in self.ratios(against, measure)]
        return None if None in ratios else median(ratio for ratio in ratios if ratio is not None)


def run_to_accuracy(
    config: str | Path, overrides: Sequence[str], settings: AccuracySettings, progress: Progress = lambda line: None
) -> AccuracyResult:
    """Trains ours and its peers for the same seconds each, seed by seed. Raises ValueError for what the user can mend.

    All get the same batches of our loader, in the same order unless DATA.repeats of ours differs.
    """
    shared = load_config(config, overrides)
    own = load_config(config, [*overrides, *settings.ours])
    if shared.TASK != "pretrain":
        raise ValueError(f"--to-accuracy: TASK is {shared.TASK}, and only pretraining has peers")
    curves: list[Curve] = []
    with join_world(build.engine_settings(own).distributed) as world:
        if world.size > 1:
            raise ValueError(f"torchrun started {world.size} processes: a benchmark needs --nproc_per_node 1")
        for seed in settings.seeds:
            runs = [timed_run(cfg, seed, world, settings.budget) for cfg in (own, shared)]
            curves += _race(runs[0], runs[1], settings, progress)
        task, judge = runs[0].task, runs[0].task.settings
        return AccuracyResult(
            theme=f"{theme_of(config)}_to_accuracy",
            machine=Machine.here(world.device),
            date=datetime.now(),
            precision=runs[0].cfg.TRAIN.precision,
            batch=runs[0].plan.batch,
            images=(min(len(task.bank), judge.knn_bank), min(len(task.held_out), judge.samples)),
            settings=settings,
            curves=tuple(curves),
        )


def timed_run(cfg: Config, seed: int, world: World, budget: float) -> TimedRun:
    """The images and the model of a config. Raises ValueError where there is nothing to judge by."""
    cfg = cfg.replace({"SEED": seed, "TRAIN.precision": resolve_precision(cfg.TRAIN.precision, world.device)})
    train, held_out = build.build_data(cfg)
    cfg = build.with_statistics(cfg, train)
    task = build.build_task(cfg, train, held_out)
    assert isinstance(task, Pretrain)
    if not task.settings.knn or not len(held_out) or None in (train.label_kind, held_out.label_kind):
        raise ValueError(
            "--to-accuracy judges by kNN: it needs held-out images, classes of all images, and EVALUATE.knn above 0"
        )
    return TimedRun(cfg=cfg, task=task, world=world, budget=budget)


def _race(own: TimedRun, shared: TimedRun, settings: AccuracySettings, progress: Progress) -> list[Curve]:
    """All sides with one seed, in slices that they take in turns."""
    seed, judge = own.cfg.SEED, Judge(own)
    with ExitStack() as stack:
        sides: list[Side] = [OurSide(own)]
        dry = dry_task(shared.cfg)
        sides += [PeerSide(shared, name, build_peer(name, dry)) for name in settings.against]
        for side in sides:
            stack.callback(side.close)
        points: dict[str, list[Point]] = {side.name: [] for side in sides}
        seconds = 0.0
        for number, until in enumerate(evaluation_times(settings)):
            order = sides if number % 2 else sides[::-1]
            while seconds < until:
                seconds = min(seconds + SLICE_S, until)
                for side in order:
                    progress(f"seed {seed}: {side.name}, {seconds:.0f} of {settings.budget:.0f} s")
                    side.train(seconds)
            for side in order:
                progress(f"seed {seed}: accuracy of {side.name} after {until:.0f} s")
                points[side.name].append(Point(side.seconds, side.images, *judge.accuracies(side)))
        return [
            Curve(
                name=side.name,
                seed=seed,
                model=side.model,
                parameters=side.parameters,
                differences=side.differences,
                points=tuple(points[side.name]),
            )
            for side in sides
        ]


def evaluation_times(settings: AccuracySettings) -> list[float]:
    """Seconds of training at which the sides are judged: 0, each multiple of `every` below the budget, and its end."""
    count = math.ceil(settings.budget / settings.every)
    return [*(number * settings.every for number in range(count)), settings.budget]
