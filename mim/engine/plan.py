"""Plan: the batches and steps of a run, and the settings of the engine that they follow from."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from mim.engine.optim import Optimizer
from mim.engine.schedule import Extended, Schedule, ScheduledRun
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings
from mim.engine.trackers.base import Tracker


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of the engine, each from the key of its name.

    Raises ValueError where two of them exclude each other.
    """

    seed: int
    batch_size: int  # rows of a micro-batch of one device
    repeats: int = 1  # rows of each image in it
    workers: int  # dataloader workers of one device
    max_broken: float
    evaluate_every_epochs: int
    evaluate_at_start: bool
    train: TrainSettings
    optimizer: Optimizer
    schedule: Callable[[ScheduledRun], Schedule]
    checkpoint: CheckpointSettings
    log: LogSettings
    trackers: tuple[Tracker, ...] = ()
    distributed: DistributedSettings

    def __post_init__(self) -> None:
        if self.train.compile == "max" and self.distributed.strategy != "ddp":
            raise ValueError(
                f"TRAIN.compile is max, and DISTRIBUTED.strategy {self.distributed.strategy} gathers weights at a new "
                "place in each step, which CUDA graphs cannot follow: use TRAIN.compile true, or strategy ddp"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows, micro-batches and steps of a run."""

    batch: int  # rows of one optimizer step over all devices
    micro_batch: int  # rows of one forward pass
    world_size: int
    accumulation: int  # forward passes of one device in a step
    epochs: int
    steps_per_epoch: int  # the last rows of an epoch that do not fill a batch are left out

    @classmethod
    def of(cls, settings: EngineSettings, samples: int, world_size: int) -> "Plan":
        """Raises ValueError where DATA.batch_size x devices does not divide the batch, or there are too few images."""
        micro_batch = settings.batch_size
        batch = settings.train.batch or micro_batch * world_size
        if batch % (micro_batch * world_size):
            raise ValueError(
                f"TRAIN.batch {batch} is not a multiple of DATA.batch_size {micro_batch} x {world_size} devices = "
                f"{micro_batch * world_size}: each device must accumulate a whole number of micro-batches"
            )
        rows = samples * settings.repeats
        if rows < batch:
            repeated = f" x DATA.repeats {settings.repeats}" if settings.repeats > 1 else ""
            raise ValueError(
                f"the data set has {samples} training images{repeated}, fewer than the {batch} of one step "
                "(TRAIN.batch): lower TRAIN.batch, and DATA.batch_size to a divisor of it"
            )
        accumulation = batch // (micro_batch * world_size)
        return cls(batch, micro_batch, world_size, accumulation, settings.train.epochs, rows // batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def images_seen(self) -> int:
        """Rows of all steps. Each crop of an image counts."""
        return self.steps * self.batch

    def schedule(self, settings: EngineSettings) -> Schedule:
        """The learning rate of every step, also of those before an extension."""
        *earlier, last = self._schedules(settings)
        return Extended(earlier, last) if earlier and last.stable_until is None else last

    def _schedules(self, settings: EngineSettings) -> list[Schedule]:
        """That of each length which the run was to have."""
        optimizer = settings.optimizer
        scale = self.batch / optimizer.per_batch
        lengths = (*settings.train.extended_at, self.epochs)
        runs = [ScheduledRun(optimizer.base_lr, scale, epochs, self.steps_per_epoch) for epochs in lengths]
        return [settings.schedule(run) for run in runs]

    def describe(self, settings: EngineSettings) -> dict[str, str]:
        """Batch, steps and learning rate, each with its formula."""
        optimizer, schedule = settings.optimizer, self.schedule(settings)
        decay = optimizer.layer_decay
        epochs = schedule.warmup_epochs
        warmup = f", {epochs:g} epoch{'s' * (epochs != 1)} of warmup" if epochs else ""
        layers = f", x {decay:g} for each encoder layer below the top" if decay < 1 else ""
        return {
            "batch": f"{self.batch:,} = {self.micro_batch} a device x {self.world_size} "
            f"device{'s' * (self.world_size > 1)} x {self.accumulation} accumulated",
            "steps": f"{self.steps:,} = {self.steps_per_epoch:,} an epoch x {self.epochs}; "
            f"{self.images_seen:,} images seen in all",
            "learning rate": f"{schedule.peak:.3g} = {optimizer.base_lr:g} x {self.batch} / {optimizer.per_batch}, "
            f"{schedule.name}{warmup}{layers}",
            **self._weight_decay(optimizer),
            **self._extensions(settings),
        }

    def _weight_decay(self, optimizer: Optimizer) -> dict[str, str]:
        """Where it goes; empty where it does not change."""
        start, end = optimizer.weight_decay, optimizer.weight_decay_end
        return {"weight decay": f"{start:g} to {end:g} by half a cosine"} if start != end else {}

    def _extensions(self, settings: EngineSettings) -> dict[str, str]:
        """Where the run was extended, and the learning rates before and after; empty where it was not."""
        lengths, schedule = settings.train.lengths, self.schedule(settings)
        lines = []
        for (before, epochs), shorter in zip(pairwise(lengths), self._schedules(settings), strict=False):
            step = before * self.steps_per_epoch
            if shorter.stable_until is not None:
                lines.append(
                    f"from epoch {before} to {epochs} epochs, out of its stable phase, which ended at step "
                    f"{shorter.stable_until:,}"
                )
                continue
            lines.append(
                f"at epoch {before} (step {step:,}) to {epochs} epochs; from there on the learning rate is that of a "
                f"run of {epochs} epochs: {schedule.at(step):.3g} after {schedule.at(step - 1):.3g}"
            )
        return {"extended": "; ".join(lines)} if lines else {}
