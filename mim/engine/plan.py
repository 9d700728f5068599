"""The settings of the engine as one value, and the arithmetic of batches and steps."""

from collections.abc import Callable
from dataclasses import dataclass

from mim.engine.optim import Optimizer
from mim.engine.schedule import Schedule, ScheduledRun
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """All that the engine is told.

    batch_size: micro-batch of one device; repeats: rows of each image in it; workers: loader processes of one device.
    """

    seed: int
    batch_size: int
    repeats: int = 1
    workers: int
    max_broken: float
    evaluate_every_epochs: int
    evaluate_at_start: bool
    train: TrainSettings
    optimizer: Optimizer
    schedule: Callable[[ScheduledRun], Schedule]
    checkpoint: CheckpointSettings
    log: LogSettings
    distributed: DistributedSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic of a run: rows, micro-batches and steps.

    batch: rows of one optimizer step; micro_batch: rows of one forward pass; accumulation: forward passes of one device
    in a step.
    """

    batch: int
    micro_batch: int
    world_size: int
    accumulation: int
    epochs: int
    steps_per_epoch: int

    @classmethod
    def of(cls, settings: EngineSettings, samples: int, world_size: int) -> "Plan":
        """Raises ValueError where the batch does not come out whole, or the data set is smaller than one batch."""
        micro_batch = settings.batch_size
        batch = settings.train.batch or micro_batch * world_size
        if batch % (micro_batch * world_size):
            raise ValueError(
                f"TRAIN.batch {batch} is not a multiple of DATA.batch_size {micro_batch} x {world_size} devices = "
                f"{micro_batch * world_size}: the number of accumulated micro-batches must come out whole"
            )
        rows = samples * settings.repeats
        if rows < batch:
            repeated = f" x DATA.repeats {settings.repeats}" if settings.repeats > 1 else ""
            raise ValueError(
                f"the data set has {samples} training images{repeated}, fewer than the {batch} of one step "
                "(TRAIN.batch): lower TRAIN.batch, and DATA.batch_size so that it divides it"
            )
        accumulation = batch // (micro_batch * world_size)
        return cls(batch, micro_batch, world_size, accumulation, settings.train.epochs, rows // batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def images_seen(self) -> int:
        """Rows of all steps: each crop of an image counts, and those that do not fill an epoch's last batch do not."""
        return self.steps * self.batch

    def schedule(self, settings: EngineSettings) -> Schedule:
        """The learning rate of every step."""
        optimizer = settings.optimizer
        scale = self.batch / optimizer.per_batch
        return settings.schedule(ScheduledRun(optimizer.base_lr, scale, self.epochs, self.steps_per_epoch))

    def describe(self, settings: EngineSettings) -> dict[str, str]:
        """Batch, steps and learning rate in words, each with its formula."""
        optimizer, schedule = settings.optimizer, self.schedule(settings)
        decay = optimizer.layer_decay
        layers = f", x {decay:g} for each encoder layer below the top" if decay < 1 else ""
        return {
            "batch": f"{self.batch:,} = {self.micro_batch} a device x {self.world_size} "
            f"device{'s' * (self.world_size > 1)} x {self.accumulation} accumulated",
            "steps": f"{self.steps:,} = {self.steps_per_epoch:,} an epoch x {self.epochs}; "
            f"{self.images_seen:,} images seen in all",
            "learning rate": f"{schedule.peak:.3g} = {optimizer.base_lr:g} x {self.batch} / {optimizer.per_batch}, "
            f"{schedule.name}, {schedule.warmup_epochs:g} epochs of warmup{layers}",
        }
