"""The learning rate of every optimizer step, as a pure function of the step."""

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from mim.io.checks import at_least


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """SCHEDULE.

    name: cosine or multistep; warmup_epochs: linear rise from warmup_lr; min_lr: where the cosine ends; scale_all:
    warmup_lr and min_lr are scaled by the batch as base_lr is (SimMIM), or are absolute (MAE); milestones: epochs at
    which multistep multiplies the rate by gamma; cosine_from: `warmup` starts the cosine where the warmup ends (MAE),
    `start` lets it run from step 0 and joins it after the warmup (SimMIM, where it then starts below the peak); lag:
    steps by which the rate trails, 1 where it is set after the optimizer's step (SimMIM), else 0; factor_on: what the
    lr_scale of a parameter group, such as layer decay, multiplies: the whole `rate` (MAE), or the `peak`, so that all
    groups share warmup_lr and min_lr (SimMIM, through timm's scheduler).
    """

    name: Literal["cosine", "multistep"] = "cosine"
    warmup_epochs: float = 40.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    scale_all: bool = False
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cosine_from: Literal["warmup", "start"] = "warmup"
    lag: int = 0
    factor_on: Literal["rate", "peak"] = "rate"

    def __post_init__(self) -> None:
        at_least("SCHEDULE", 0, warmup_epochs=self.warmup_epochs, warmup_lr=self.warmup_lr, min_lr=self.min_lr)
        at_least("SCHEDULE", 0, gamma=self.gamma, lag=self.lag)
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"SCHEDULE.milestones is {list(self.milestones)}: epochs in rising order")


class Schedule:
    """Learning rates of a run.

    peak = base_lr * batch / per_batch. Source: MAE, util/lr_sched.py (per fractional epoch); SimMIM, lr_scheduler.py
    (timm's CosineLRScheduler without warmup prefix, and its own MultiStepLRScheduler, both updated every step).
    """

    def __init__(
        self, settings: ScheduleSettings, base_lr: float, batch: int, per_batch: int, epochs: int, steps_per_epoch: int
    ):
        scale = batch / per_batch
        self.settings, self.peak = settings, base_lr * scale
        self.warmup_lr = settings.warmup_lr * (scale if settings.scale_all else 1)
        self.min_lr = settings.min_lr * (scale if settings.scale_all else 1)
        self.warmup = settings.warmup_epochs * steps_per_epoch
        self.steps = epochs * steps_per_epoch
        self.milestones = [epoch * steps_per_epoch for epoch in settings.milestones]

    def at(self, step: int, lr_scale: float = 1.0) -> float:
        """The rate of step 0, 1, ... steps - 1, for a parameter group with this lr_scale."""
        if self.settings.factor_on == "rate":
            return lr_scale * self._at(step, self.peak)
        return self._at(step, lr_scale * self.peak)

    def _at(self, step: int, peak: float) -> float:
        step = max(step - self.settings.lag, 0)
        if step < self.warmup:
            return self.warmup_lr + (peak - self.warmup_lr) * step / self.warmup
        if self.settings.name == "multistep":
            return peak * self.settings.gamma ** bisect.bisect_right(self.milestones, step)
        start = self.warmup if self.settings.cosine_from == "warmup" else 0
        share = (step - start) / (self.steps - start)
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share))

    def warnings(self) -> list[str]:
        """Settings that will have no effect in this run."""
        found = []
        if self.warmup >= self.steps:
            found.append(f"SCHEDULE.warmup_epochs {self.settings.warmup_epochs:g}: the run ends before the warmup does")
        if self.settings.name == "multistep":
            for epoch, step in zip(self.settings.milestones, self.milestones, strict=True):
                if step >= self.steps:
                    found.append(f"SCHEDULE.milestones {epoch:g} lies beyond the end of the run")
            if self.settings.min_lr:
                found.append("SCHEDULE.min_lr has no effect with multistep")
        elif self.settings.milestones:
            found.append("SCHEDULE.milestones has no effect with cosine")
        return found
