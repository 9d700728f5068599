"""DryTrainer: real training steps without a run folder, to measure what a step costs."""

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
from mim.engine.plan import EngineSettings, Plan
from mim.engine.prefetcher import Prefetcher
from mim.engine.protocol import Task
from mim.engine.run_folder import RunFolder
from mim.engine.trainer import Trainer
from mim.structures import ImageSpec, LabelSpec

Phase = Literal["batch", "forward", "backward", "update", "end"]
PhaseCallback = Callable[[Phase], None]  # called as each phase of a step begins, and at the end of the step
ENDLESS = 1_000_000  # epochs of the images that are read
MAX_MICRO_BATCHES = 2  # of a dry step: from the second on, each costs what the one before cost


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNoise:
    """Random images in place of real ones."""

    image: ImageSpec  # their size
    stored: torch.dtype  # the type in which they are stored
    labels: LabelSpec | None = None  # what their labels are; None for none


class DryPrefetcher(Prefetcher):
    """Micro-batches of `rows` random images with random labels, made on the device, or those of `real`."""

    def __init__(
        self,
        noise: ImageNoise,
        rows: int,
        device: torch.device,
        on_phase: PhaseCallback,
        real: Prefetcher | None = None,
    ):
        self.noise, self.rows, self.device, self.on_phase, self.real = noise, rows, device, on_phase, real

    def next(self) -> Batch:
        self.on_phase("batch")
        if self.real is not None:
            return self.real.next()
        image, stored = self.noise.image, self.noise.stored
        shape = (self.rows, image.channels, image.height, image.width)
        if stored.is_floating_point:
            images_BCHW = torch.randn(shape, dtype=stored, device=self.device)
        else:
            images_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device).to(stored)
        return Batch(images_BCHW, self._labels(), tuple(range(self.rows)))

    def _labels(self) -> Tensor:
        """Random labels of the kind of the noise."""
        spec, image = self.noise.labels, self.noise.image
        if spec is not None and spec.kind in ("classes", "number"):
            return torch.rand(self.rows, spec.outputs, device=self.device).round()
        shape = (self.rows, image.height, image.width) if spec is not None and spec.kind == "mask" else (self.rows,)
        return torch.randint(0, spec.outputs if spec is not None else 1, shape, device=self.device)

    def prefetch(self) -> None:
        if self.real is not None:
            self.real.prefetch()


class DryTrainer(Trainer):
    """A trainer without run folder and evaluations. Its step is the step of a run.

    Args:
        task: where `workers` is None, its train_data needs no images, only the length of at least one batch.
        plan: of the run. Where several devices share a batch, this process is one of them. It holds the memory for the
            exchange of gradients, but exchanges nothing, unless `world` has several processes.
        on_phase: called as each phase of a step begins, and at the end of the step.
        workers: dataloader workers that read the task's own images; None for random images.
        world: the processes that train together; None for this process alone.
    """

    def __init__(
        self,
        task: Task,
        settings: EngineSettings,
        plan: Plan,
        noise: ImageNoise,
        device: torch.device,
        on_phase: PhaseCallback,
        workers: int | None = None,
        world: World | None = None,
    ):
        super().__init__(task, settings, world or World(0, 1, device), RunFolder(Path()))
        self.plan = replace(plan, accumulation=min(plan.accumulation, MAX_MICRO_BATCHES))
        real = None
        if workers is not None:
            real = Prefetcher(task.train_data, replace(plan, epochs=ENDLESS), self.world, 0, workers, self.broken)
        self.prefetcher = DryPrefetcher(noise, plan.micro_batch, device, on_phase, real)
        self.on_phase = on_phase
        self._start()
        self.model = self.train_state.wrap()
        self.buckets: dict[Tensor, Tensor] = {}  # of DistributedDataParallel: gradients as they are exchanged
        if plan.world_size > 1 and not self.world.grouped:
            self.buckets = {parameter: torch.empty_like(parameter) for parameter in self.train_state.parameters}
            for parameter in self.train_state.parameters:
                parameter.register_post_accumulate_grad_hook(self._fill_bucket)

    def make_optimizer_state(self) -> None:
        """Makes the optimizer's state by a step with zero gradients. A run has this state from its second step on."""
        for parameter in self.train_state.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.train_state.scaler.scale(torch.zeros((), device=self.world.device))  # makes the scaler's state, too
        super()._update(0, torch.zeros((), device=self.world.device))

    def take_step(self) -> None:
        """Takes one optimizer step of at most MAX_MICRO_BATCHES micro-batches."""
        self.step %= self.plan.steps
        deterministic = deterministic_kernels(self.settings.train.is_deterministic(self.world.device))
        with deterministic, kept_memory(self.world.device):
            self._train_step()
        if self.world.device.type == "cuda":
            self.monitor.look()  # as a run does; otherwise copies of the loss would collect on the host
        self.on_phase("end")

    @contextmanager
    def _autocast(self) -> Iterator[None]:  # type: ignore[override]
        """The trainer enters this around the forward pass."""
        self.on_phase("forward")
        with super()._autocast():
            yield
        self.on_phase("backward")

    def _update(self, step: int, loss: Tensor) -> Tensor:
        self.on_phase("update")
        return super()._update(step, loss)

    def _synchronised(self, last: bool) -> AbstractContextManager:
        self._last = last
        return super()._synchronised(last)

    def _fill_bucket(self, parameter: Tensor) -> None:
        """In the last micro-batch of a step, each gradient moves to its bucket."""
        if self._last and parameter.grad is not None:
            parameter.grad = self.buckets[parameter].copy_(parameter.grad)
