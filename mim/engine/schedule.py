"""Schedule: the family of parts that give the learning rate of every optimizer step. No torch here."""

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mim.io.checks import at_least, shares
from mim.registry import Component


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """What a schedule knows of a run."""

    base_lr: float  # OPTIMIZER.base_lr
    batch_scale: float  # images of one optimizer step / OPTIMIZER.per_batch
    epochs: int  # TRAIN.epochs
    steps_per_epoch: int  # optimizer steps of one epoch


class Schedule(Component, ABC, section="SCHEDULE"):
    """Learning rates of a run, a pure function of the step: a linear warmup up to the peak, then what a subclass says.

    A new schedule is a subclass with `after_warmup`, or with its own `at`. The peak is base_lr x batch_scale.

    Args:
        warmup_epochs: epochs of linear rise from warmup_lr to the peak.
        warmup_lr: learning rate of the first step.
        scale_all: scale warmup_lr and min_lr with the batch, as base_lr is (SimMIM); false: they are absolute (MAE).
        lag: optimizer steps by which the rate comes late: 1 where it is set after the optimizer's step (SimMIM), else
            0.
        lr_scale_on: what the lr_scale of a parameter group, such as layer decay, multiplies: the whole `rate` (MAE), or
            the `peak`, so that all groups share warmup_lr and min_lr (SimMIM, through timm's scheduler).

    Attributes: peak, the largest rate; warmup and steps, in optimizer steps.
    """

    def __init__(
        self,
        run: ScheduledRun,
        *,
        warmup_epochs: float = 40.0,
        warmup_lr: float = 0.0,
        scale_all: bool = False,
        lag: int = 0,
        lr_scale_on: Literal["rate", "peak"] = "rate",
    ):
        at_least("SCHEDULE", 0, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr, lag=lag)
        self.warmup_epochs, self.scale_all, self.lag, self.lr_scale_on = warmup_epochs, scale_all, lag, lr_scale_on
        self.run, self.peak = run, run.base_lr * run.batch_scale
        self.warmup_lr = self.scaled(warmup_lr)
        self.warmup = warmup_epochs * run.steps_per_epoch
        self.steps = run.epochs * run.steps_per_epoch

    def scaled(self, rate: float) -> float:
        """A rate that scale_all scales with the batch."""
        return rate * (self.run.batch_scale if self.scale_all else 1)

    def at(self, step: int, lr_scale: float = 1.0) -> float:
        """The rate of step 0, 1, ... steps - 1 for a parameter group with this lr_scale."""
        if self.lr_scale_on == "rate":
            return lr_scale * self._at(step, self.peak)
        return self._at(step, lr_scale * self.peak)

    def _at(self, step: int, peak: float) -> float:
        step = max(step - self.lag, 0)
        if step < self.warmup:
            return self.warmup_lr + (peak - self.warmup_lr) * step / self.warmup
        return self.after_warmup(step, peak)

    @abstractmethod
    def after_warmup(self, step: int, peak: float) -> float:
        """The rate of a step from `warmup` on, for a parameter group with this peak."""

    @property
    def stable_until(self) -> int | None:
        """Optimizer steps after which a longer run would stand where this one does; None where each rate differs.

        `--extend` goes on from there, and a run writes and keeps a checkpoint there.
        """
        return None

    def warnings(self) -> list[str]:
        """Settings without effect in this run, one line each."""
        if self.warmup < self.steps:
            return []
        return [f"SCHEDULE.warmup_epochs {self.warmup_epochs:g}: the run ends before the warmup does"]


class Extended(Schedule):
    """The schedule of a run that `--extend` prolonged, also a pure function of the step.

    Before each extension the rate is that of the run as it then was; from the first step after it, that of the longer
    run. Source: MAE's main_pretrain.py, where it is resumed with more --epochs. Without a name, so no config names it.

    Attributes: those of the longest run, as the last of its schedules has them.
    """

    def __init__(self, earlier: Sequence[Schedule], last: Schedule):
        vars(self).update(vars(last))
        self.schedules, self.last, self.name = (*earlier, last), last, last.name  # type: ignore[misc]

    def at(self, step: int, lr_scale: float = 1.0) -> float:
        schedule = next((each for each in self.schedules if step < each.steps), self.last)
        return schedule.at(step, lr_scale)

    def after_warmup(self, step: int, peak: float) -> float:
        return self.last.after_warmup(step, peak)

    def warnings(self) -> list[str]:
        return self.last.warnings()


class Cosine(Schedule, name="cosine"):
    """Half a cosine from the peak to min_lr. Source: MAE, util/lr_sched.py; SimMIM, timm's CosineLRScheduler.

    Args:
        min_lr: learning rate at the end.
        cosine_from: `warmup`: the cosine starts where the warmup ends (MAE); `start`: it runs from step 0 and takes
            over after the warmup, then below the peak (SimMIM).
    """

    def __init__(
        self,
        run: ScheduledRun,
        *,
        min_lr: float = 0.0,
        cosine_from: Literal["warmup", "start"] = "warmup",
        **shared: Any,
    ):
        super().__init__(run, **shared)
        at_least("SCHEDULE", 0, min_lr=min_lr)
        self.min_lr = self.scaled(min_lr)
        self.start = self.warmup if cosine_from == "warmup" else 0

    def after_warmup(self, step: int, peak: float) -> float:
        share = (step - self.start) / (self.steps - self.start)
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * share))


class MultiStep(Schedule, name="multistep"):
    """The peak, multiplied by gamma at each milestone. Source: SimMIM, lr_scheduler.py, MultiStepLRScheduler.

    Args:
        milestones: epochs, rising, at which the rate is multiplied by gamma.
        gamma: factor on the rate.
    """

    def __init__(self, run: ScheduledRun, *, milestones: tuple[float, ...] = (), gamma: float = 0.1, **shared: Any):
        super().__init__(run, **shared)
        at_least("SCHEDULE", 0, gamma=gamma)
        if list(milestones) != sorted(milestones):
            raise ValueError(f"SCHEDULE.milestones is {list(milestones)}: epochs in rising order")
        self.gamma, self.milestones = gamma, [epoch * run.steps_per_epoch for epoch in milestones]

    def after_warmup(self, step: int, peak: float) -> float:
        return peak * self.gamma ** bisect.bisect_right(self.milestones, step)

    def warnings(self) -> list[str]:
        late = [step / self.run.steps_per_epoch for step in self.milestones if step >= self.steps]
        return super().warnings() + [f"SCHEDULE.milestones {epoch:g} lies beyond the end of the run" for epoch in late]


class MinCosine(Schedule, name="min_cosine"):
    """The smaller of a linear warmup and half a cosine that begins with the run; both move once an epoch.

    In epoch 0, 1, ... the warmup is (epoch + 1) / warmup_epochs of its rise, so the first epoch is not at warmup_lr,
    and the rate falls below the peak before the warmup ends. Source: IcarusWizard/MAE, mae_pretrain.py and
    train_classifier.py.

    Args:
        min_lr: learning rate at the end of the cosine.
    """

    def __init__(self, run: ScheduledRun, *, min_lr: float = 0.0, **shared: Any):
        super().__init__(run, **shared)
        at_least("SCHEDULE", 0, min_lr=min_lr)
        self.min_lr = self.scaled(min_lr)

    def _at(self, step: int, peak: float) -> float:
        epoch = max(step - self.lag, 0) // self.run.steps_per_epoch
        falling = self.after_warmup(epoch * self.run.steps_per_epoch, peak)
        if epoch + 1 >= self.warmup_epochs:
            return min(peak, falling)
        return min(self.warmup_lr + (peak - self.warmup_lr) * (epoch + 1) / self.warmup_epochs, falling)

    def after_warmup(self, step: int, peak: float) -> float:
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class WSD(Schedule, name="wsd"):
    """Warmup, stable, decay: the peak until the last decay_epochs, in which the rate falls to min_lr.

    A finished run is prolonged from its stable phase: a run writes a checkpoint where its decay begins, and keeps it.
    `--extend EPOCHS` goes on from there at the peak and decays anew, so that the run ends as one of EPOCHS epochs from
    the start, bit for bit where nothing else depends on their number (as weight_decay_end does). The end of the shorter
    run stays: checkpoints/epoch-N.pt, metrics-epoch-N.jsonl, summary-epoch-N.json. Without a checkpoint of the stable
    phase --extend is refused.

    Source: MiniCPM (Hu et al., arXiv:2404.06395); Hägele et al., arXiv:2405.18392 (decay over a fifth of the run).

    Args:
        decay_epochs: epochs of decay at the end of the run; 0 for none.
        decay_share: share of the run in which it decays, above 0 and at most 1, in place of decay_epochs; `none`: it is
            decay_epochs.
        decay: shape of the decay: `linear`, or `1-sqrt`, which falls faster at first (arXiv:2405.18392, section 3).
        min_lr: learning rate at the end.
    """

    def __init__(
        self,
        run: ScheduledRun,
        *,
        decay_epochs: float = 10.0,
        decay_share: float | Literal["none"] = "none",
        decay: Literal["linear", "1-sqrt"] = "linear",
        min_lr: float = 0.0,
        **shared: Any,
    ):
        super().__init__(run, **shared)
        at_least("SCHEDULE", 0, decay_epochs=decay_epochs, min_lr=min_lr)
        if decay_share != "none":
            shares("SCHEDULE", decay_share=decay_share)
            decay_epochs = decay_share * run.epochs
        self.decay_epochs, self.decay, self.min_lr = decay_epochs, decay, self.scaled(min_lr)
        self.start = max(self.steps - decay_epochs * run.steps_per_epoch, self.warmup)

    @property
    def stable_until(self) -> int:
        return min(math.floor(self.start), self.steps)

    def after_warmup(self, step: int, peak: float) -> float:
        if step <= self.start:
            return peak
        share = (step - self.start) / (self.steps - self.start)
        return self.min_lr + (peak - self.min_lr) * (1 - (share if self.decay == "linear" else math.sqrt(share)))

    def warnings(self) -> list[str]:
        if self.warmup_epochs + self.decay_epochs <= self.run.epochs:
            return super().warnings()
        return [
            *super().warnings(),
            f"SCHEDULE.decay_epochs {self.decay_epochs:g}: the warmup ends later than the decay should start, so the "
            "decay is shorter",
        ]
