"""Turns: the steps of several sides, taken in turn in one process, and what came out."""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from mim.lab.benchmark.ceiling import Ceiling, Product, utilisation
from mim.lab.benchmark.contenders import OURS, Side
from mim.lab.dryrun.measure import PhaseSeconds, TimedSteps

TURN_S = {"cpu": 0.5, "cuda": 2.0}  # that a turn should take at least, where steps are short
MOST = {"cpu": 20, "cuda": 50}  # steps of a turn, where their number is not given
PHASES = ("batch", "forward", "backward", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the steps of one side took. batch: images of a step; rounds: the steps of each; tensors, process: bytes, as
    in StepMeasurement; real: on images that were read, the reading of which is then a part of a step.
    """

    side: Side
    batch: int
    real: bool
    rounds: tuple[tuple[PhaseSeconds, ...], ...]
    tensors: int
    process: int | None

    @property
    def round_s(self) -> tuple[float, ...]:
        """Seconds of a step, the mean of each round."""
        return tuple(sum(map(self._whole, steps)) / len(steps) for steps in self.rounds)

    @property
    def step_s(self) -> float:
        """Seconds of a step: the median of the rounds."""
        return median(self.round_s)

    @property
    def images_per_s(self) -> float:
        """By the median of the rounds."""
        return self.batch / self.step_s

    @property
    def steps(self) -> list[PhaseSeconds]:
        """Of all rounds."""
        return [step for steps in self.rounds for step in steps]

    def phase_s(self, phase: str) -> float | None:
        """The median of a phase; None for the making of random images, which is no part of training."""
        if phase == "batch" and not self.real:
            return None
        return median(step.get(phase, 0.0) for step in self.steps)  # type: ignore[call-overload]

    def utilisation(self, ceiling: Product) -> float | None:
        """The share of the ceiling that a step reaches."""
        return utilisation(self.side.flops and self.side.flops * self.batch, self.step_s, ceiling)

    def _whole(self, step: PhaseSeconds) -> float:
        return sum(seconds for phase, seconds in step.items() if self.real or phase != "batch")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many images a second as `against` ours trained: the quotient of the medians, and the least and
    the largest quotient of a round.
    """

    against: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What came out at one batch. failed: sides for which the memory was too small; turn: steps of a round."""

    batch: int
    turn: int
    figures: tuple[Figures, ...]
    failed: tuple[str, ...] = ()

    def of(self, name: str) -> Figures | None:
        """The figures of a side; None where it failed."""
        return next((found for found in self.figures if found.side.name == name), None)

    def ratios(self) -> list[Ratio]:
        """Of ours against every other side."""
        own = self.of(OURS)
        return [ratio(own, other) for other in self.figures if own is not None and other is not own]


def ratio(own: Figures, other: Figures) -> Ratio:
    """Of two sides at the same or at different batches."""
    found = [
        (one / own.batch, two / other.batch) for one, two in zip(own.round_s, other.round_s, strict=True)
    ]  # seconds an image
    each = [two / one for one, two in found]
    return Ratio(other.side.name, own.images_per_s / other.images_per_s, min(each), max(each))


def take_turns(
    sides: Sequence[Side],
    ceiling: Ceiling,
    device: torch.device,
    *,
    batch: int,
    rounds: int,
    turn: int = 0,
    real: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Turns, dict[str, TimedSteps]]:
    """Takes `rounds` rounds, in each `turn` steps of every side and some matrix products; gives what trained, too.

    Each side is built, warmed up and its memory measured before the first round, the others idle. turn: 0 for as many
    steps as take about half a second, on a GPU two. A side for which the memory is too small fails alone.
    """
    timed: dict[str, TimedSteps] = {}
    for side in sides:
        say(f"batch {batch}: building {side.name} and its first steps")
        try:
            timed[side.name] = TimedSteps(side.make, device)
        except torch.OutOfMemoryError:
            say(f"batch {batch}: out of memory for {side.name}")
    held = [side for side in sides if side.name in timed]
    turn = turn or _turn([timed[side.name].warmup[-1] for side in held], device)
    taken: dict[str, list[tuple[PhaseSeconds, ...]]] = {side.name: [] for side in held}
    for number in range(rounds):
        ceiling.measure()
        for side in [side for side in held if side.name in timed]:
            say(f"batch {batch}: round {number + 1} of {rounds}, {side.name}")
            try:
                taken[side.name].append(_one_turn(timed[side.name], turn, device, alone=len(timed) == 1))
            except torch.OutOfMemoryError:
                del timed[side.name]
                say(f"batch {batch}: out of memory for {side.name}")
    figures = tuple(
        Figures(
            side=side,
            batch=batch,
            real=real,
            rounds=tuple(taken[side.name]),
            tensors=timed[side.name].tensors,
            process=timed[side.name].process,
        )
        for side in sides
        if side.name in timed
    )
    failed = tuple(side.name for side in sides if side.name not in timed)
    return Turns(batch=batch, turn=turn, figures=figures, failed=failed), timed


def _one_turn(timed: TimedSteps, turn: int, device: torch.device, alone: bool) -> tuple[PhaseSeconds, ...]:
    """The steps of one side, behind one that does not count where another side took memory and caches."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    if device.type == "cuda" or not alone:
        timed.take(1)
    return tuple(timed.take(turn))


def _turn(warm: Sequence[PhaseSeconds], device: torch.device) -> int:
    """So many steps that the fastest side's take long enough to be measured."""
    fastest = min((sum(step.values()) for step in warm), default=1.0)
    return min(max(math.ceil(TURN_S[device.type] / fastest), 1), MOST[device.type])
