"""Rehearsal: training steps on random images, to see what a step will cost."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mim.data.batch import Batch
from mim.engine.distributed.world import World
from mim.engine.modes import deterministic_kernels, kept_memory
from mim.engine.prefetcher import Prefetcher
from mim.engine.protocol import Task
from mim.engine.run_folder import RunFolder
from mim.engine.settings import EngineSettings, Plan
from mim.engine.trackers.metrics import Stopwatch
from mim.engine.trainer import Trainer
from mim.structures import ImageSpec

Phase = Literal["batch", "forward", "backward", "update", "end"]
Entered = Callable[[Phase], None]
ENDLESS = 1_000_000  # epochs of the images that are read
AGAIN = 2  # micro-batches of a step that are rehearsed at most: from the second on, each is like the one before


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What random images are like: their size, the type they are stored in, and the classes they are of, 0 for none."""

    image: ImageSpec
    stored: torch.dtype
    classes: int = 0


class RandomImages(Prefetcher):
    """Micro-batches of noise, with random labels."""

    def __init__(self, noise: Noise, rows: int, device: torch.device, entered: Entered):
        self.noise, self.rows, self.device, self.entered = noise, rows, device, entered

    def next(self) -> Batch:
        """Another micro-batch, made on the device."""
        self.entered("batch")
        image, stored = self.noise.image, self.noise.stored
        shape = (self.rows, image.channels, image.height, image.width)
        if stored.is_floating_point:
            images_BCHW = torch.randn(shape, dtype=stored, device=self.device)
        else:
            images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device).to(stored)
        labels_B = torch.randint(0, max(self.noise.classes, 1), (self.rows,), device=self.device)
        return Batch(images_BCHW, labels_B, tuple(range(self.rows)))

    def prefetch(self) -> None:
        """Nothing is copied."""


class Announced(Prefetcher):
    """A feed that tells when it is asked for a micro-batch."""

    def __init__(self, prefetcher: Prefetcher, entered: Entered):
        self.prefetcher, self.entered = prefetcher, entered

    def next(self) -> Batch:
        """The next micro-batch of that prefetcher."""
        self.entered("batch")
        return self.prefetcher.next()

    def prefetch(self) -> None:
        """As that prefetcher."""
        self.prefetcher.prefetch()


class Rehearsal(Trainer):
    """A trainer without run folder and evaluations, and mostly without data; its step is that of a run.

    Args:
        task: its train_data needs no images where `workers` is None, only a length of at least one batch.
        plan: of the run. Where several devices share a batch, this is one of them, with the memory for the exchange
            of gradients, but without the exchange, unless `world` is one of several.
        entered: told of each phase of a step as it begins, and of the end.
        workers: loader processes that read the task's own images; None for random images in their place.
        world: that this process has joined; None for a process alone on `device`.
    """

    def __init__(
        self,
        task: Task,
        settings: EngineSettings,
        plan: Plan,
        noise: Noise,
        device: torch.device,
        entered: Entered,
        workers: int | None = None,
        world: World | None = None,
    ):
        super().__init__(task, settings, world or World(0, 1, device), RunFolder(Path()))
        self.plan = replace(plan, accumulation=min(plan.accumulation, AGAIN))
        self.prefetcher: Prefetcher = RandomImages(noise, plan.micro_batch, device, entered)
        if workers is not None:
            endless = replace(plan, epochs=ENDLESS)
            self.prefetcher = Announced(
                Prefetcher(task.train_data, endless, self.world, 0, workers, self.broken), entered
            )
        self.entered, self.stopwatch = entered, Stopwatch()
        self.model = self.train_state.wrap()
        self.buckets: dict[Tensor, Tensor] = {}  # of DistributedDataParallel: gradients as they are exchanged
        if plan.world_size > 1 and not self.world.grouped:
            self.buckets = {parameter: torch.empty_like(parameter) for parameter in self.train_state.parameters}
            for parameter in self.train_state.parameters:
                parameter.register_post_accumulate_grad_hook(self._fill_bucket)

    def settle(self) -> None:
        """Makes the optimizer's state, which a run has from its second step on, by a step with gradients of zero."""
        for parameter in self.train_state.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.train_state.scaler.scale(torch.zeros((), device=self.world.device))  # which makes its state, too
        super()._update(0, torch.zeros((), device=self.world.device))

    def take_step(self) -> None:
        """One optimizer step, of at most AGAIN micro-batches."""
        self.step %= self.plan.steps
        deterministic = deterministic_kernels(self.settings.train.is_deterministic(self.world.device))
        with deterministic, kept_memory(self.world.device):
            self._train_step()
        if self.world.device.type == "cuda":
            self.monitor.look()  # as a run does, or copies of the loss would pile up on the host
        self.entered("end")

    @contextmanager
    def _autocast(self) -> Iterator[None]:  # type: ignore[override]
        """What is inside is the forward pass."""
        self.entered("forward")
        with super()._autocast():
            yield
        self.entered("backward")

    def _update(self, step: int, loss: Tensor) -> Tensor:
        self.entered("update")
        return super()._update(step, loss)

    def _synchronised(self, last: bool) -> AbstractContextManager:
        self._last = last
        return super()._synchronised(last)

    def _fill_bucket(self, parameter: Tensor) -> None:
        """As in the last micro-batch of a step, when each gradient moves to its bucket."""
        if self._last and parameter.grad is not None:
            parameter.grad = self.buckets[parameter].copy_(parameter.grad)
