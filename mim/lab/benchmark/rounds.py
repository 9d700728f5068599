"""Rounds: the contenders take steps one after the other, in several rounds, in one process."""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from mim.lab.benchmark.ceiling import Ceiling, MatrixProduct
from mim.lab.benchmark.contenders import OURS, Contender
from mim.lab.dryrun.measure import PhaseSeconds, TimedSteps

MIN_SECONDS = {"cpu": 0.5, "cuda": 2.0}  # of the steps of the fastest contender in a round
MAX_STEPS = {"cpu": 20, "cuda": 50}  # in a round, where their number is not given
Progress = Callable[[str], None]  # called with a line that says what begins


@dataclass(frozen=True, slots=True)
class ContenderMetrics:
    """The steps of one contender at one batch."""

    contender: Contender  # what trained
    batch: int  # images per step
    real: bool  # whether it trained on real images. Reading them is then part of a step
    rounds: tuple[tuple[PhaseSeconds, ...], ...]  # the times of each step of each round
    tensors: int  # see StepMeasurement
    process: int | None  # see StepMeasurement

    @property
    def round_s(self) -> tuple[float, ...]:
        """Seconds of a step, the mean of each round."""
        return tuple(sum(map(self._seconds, steps)) / len(steps) for steps in self.rounds)

    @property
    def step_s(self) -> float:
        """Seconds of a step, the median of the rounds."""
        return median(self.round_s)

    @property
    def images_per_s(self) -> float:
        """Images per second, by the median of the rounds."""
        return self.batch / self.step_s

    @property
    def steps(self) -> list[PhaseSeconds]:
        """The steps of all rounds."""
        return [step for steps in self.rounds for step in steps]

    def phase_s(self, phase: str) -> float | None:
        """The median time of a phase; None for the making of random images, which is not part of training."""
        if phase == "batch" and not self.real:
            return None
        return median(step.get(phase, 0.0) for step in self.steps)  # type: ignore[call-overload]

    def utilisation(self, ceiling: MatrixProduct) -> float | None:
        """The model FLOPs utilisation (MFU) of a step; None where unknown. Recomputed activations do not count."""
        flops = self.contender.flops
        return None if flops is None else flops * self.batch / self.step_s / ceiling.flops

    def _seconds(self, step: PhaseSeconds) -> float:
        return sum(seconds for phase, seconds in step.items() if self.real or phase != "batch")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many images per second ours trains as another contender."""

    against: str  # the other contender
    ratio: float  # the quotient of the medians
    low: float  # the least quotient of a round
    high: float  # the largest

    @classmethod
    def of(cls, ours: ContenderMetrics, other: ContenderMetrics) -> "Ratio":
        """The ratio of two contenders, at the same batch or at two."""
        rounds = [
            (other_s / other.batch) / (our_s / ours.batch)
            for our_s, other_s in zip(ours.round_s, other.round_s, strict=True)
        ]
        return cls(other.contender.name, ours.images_per_s / other.images_per_s, min(rounds), max(rounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """The contenders at one batch."""

    batch: int  # images per step
    steps: int  # steps per round
    metrics: tuple[ContenderMetrics, ...]  # of each contender that had enough memory
    out_of_memory: tuple[str, ...] = ()  # names of the others

    def of(self, name: str) -> ContenderMetrics | None:
        """The metrics of a contender; None where it ran out of memory."""
        return next((metrics for metrics in self.metrics if metrics.contender.name == name), None)

    @property
    def our_speed(self) -> float:
        """Images per second of ours; 0 where it ran out of memory."""
        ours = self.of(OURS)
        return ours.images_per_s if ours else 0.0

    def ratios(self) -> list[Ratio]:
        """Ours against each other contender."""
        ours = self.of(OURS)
        return [Ratio.of(ours, other) for other in self.metrics if ours is not None and other is not ours]


def take_rounds(
    contenders: Sequence[Contender],
    ceiling: Ceiling,
    device: torch.device,
    *,
    batch: int,
    rounds: int,
    steps: int = 0,
    real: bool = False,
    progress: Progress = lambda line: None,
) -> tuple[BatchResult, dict[str, TimedSteps]]:
    """Times all contenders in rounds. Returns the result and the trainers that are in memory, by contender.

    A contender that runs out of memory fails alone.

    Args:
        contenders: each is built, warmed up and its memory measured before the first round, while the others wait.
        ceiling: measured again in each round.
        steps: of each contender in a round; 0 for as many as take half a second, on a GPU two seconds.
    """
    trainers: dict[str, TimedSteps] = {}
    for contender in contenders:
        progress(f"batch {batch}: building {contender.name} and its first steps")
        try:
            trainers[contender.name] = TimedSteps(contender.make, device)
        except torch.OutOfMemoryError:
            progress(f"batch {batch}: out of memory for {contender.name}")
    steps = steps or _steps_per_round([timed.warmup[-1] for timed in trainers.values()], device)
    times: dict[str, list[tuple[PhaseSeconds, ...]]] = {name: [] for name in trainers}
    for number in range(rounds):
        ceiling.measure()
        for name in list(trainers):
            progress(f"batch {batch}: round {number + 1} of {rounds}, {name}")
            try:
                times[name].append(_take_steps(trainers[name], steps, device, alone=len(trainers) == 1))
            except torch.OutOfMemoryError:
                del trainers[name]
                progress(f"batch {batch}: out of memory for {name}")
    metrics, failed = [], []
    for contender in contenders:
        if timed := trainers.get(contender.name):
            phases = tuple(times[contender.name])
            metrics.append(ContenderMetrics(contender, batch, real, phases, timed.tensors, timed.process))
        else:
            failed.append(contender.name)
    return BatchResult(batch=batch, steps=steps, metrics=tuple(metrics), out_of_memory=tuple(failed)), trainers


def _take_steps(timed: TimedSteps, steps: int, device: torch.device, alone: bool) -> tuple[PhaseSeconds, ...]:
    """The steps of one round, after one that is not timed where another contender took memory and caches."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    if device.type == "cuda" or not alone:
        timed.take(1)
    return tuple(timed.take(steps))


def _steps_per_round(warmup: Sequence[PhaseSeconds], device: torch.device) -> int:
    """Enough steps for the fastest contender to be measured."""
    fastest = min((sum(step.values()) for step in warmup), default=1.0)
    return min(max(math.ceil(MIN_SECONDS[device.type] / fastest), 1), MAX_STEPS[device.type])
