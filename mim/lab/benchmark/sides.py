"""Sides: what trains a model against the clock in a benchmark of time to an accuracy, ours and peers.

Shapes: B batch, C channels, H W pixels, D width.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mim import build
from mim.config import Config
from mim.data.preprocess import Preprocess
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles
from mim.engine.modes import deterministic_kernels, kept_memory
from mim.engine.plan import EngineSettings, Plan
from mim.engine.precision import autocast
from mim.engine.prefetcher import Prefetcher
from mim.engine.run_folder import RunFolder
from mim.engine.trainer import Trainer
from mim.lab.benchmark.contenders import OURS
from mim.lab.benchmark.peer_models import PeerModel
from mim.lab.benchmark.peers import peer_optimizer
from mim.ops.seeding import derive_seed
from mim.tasks.pretrain import Pretrain

ENDLESS = 1_000_000  # epochs of the images that are read
LEAST = 1e-6  # progress of a run that has not begun
Encode = Callable[[Tensor], Tensor]  # normalised whole images (B, C, H, W) to the mean of their patch tokens (B, D)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRun:
    """What a side trains on."""

    cfg: Config  # with DATA.mean, DATA.std and TRAIN.precision as they are used
    task: Pretrain  # its images and their preprocessing. Its model is trained by ours alone
    world: World  # of one process
    budget: float  # seconds of training

    @property
    def settings(self) -> EngineSettings:
        """The settings of the engine."""
        return build.engine_settings(self.cfg)

    @property
    def plan(self) -> Plan:
        """Batches and steps. Raises ValueError where there are fewer images than one step takes."""
        return Plan.of(self.settings, len(self.task.train_data), self.world.size)

    def batches(self, plan: Plan, broken: BrokenFiles) -> Prefetcher:
        """Training batches without an end. Sides of equal SEED and DATA.repeats get the same ones in the same order."""
        endless = replace(plan, epochs=ENDLESS)
        return Prefetcher(self.task.train_data, endless, self.world, 0, self.settings.workers, broken)


class Side(ABC):
    """A model that trains in slices of time and keeps its state between them.

    Learning rates follow the config's schedule over the share of the budget that has passed, so that it ends with the
    budget at any speed. Seconds count from the first step on: a compilation counts, evaluations do not.

    Attributes: name, model (the model and how it is run, as text), parameters (number of trained ones), differences
    (from ours, a line each), seconds and images so far, prefetcher (its batches) and broken (their broken files).
    """

    name: str
    model: str
    parameters: int
    differences: tuple[str, ...] = ()
    prefetcher: Prefetcher
    broken: BrokenFiles

    def __init__(self, run: TimedRun):
        self.run, self.plan, self.seconds, self.images = run, run.plan, 0.0, 0

    @property
    def progress(self) -> float:
        """Share of the budget that has passed."""
        return min(self.seconds / self.run.budget, 1.0)

    def train(self, until: float) -> None:
        """Takes steps until it has trained for this many seconds in all; the last step may end later."""
        world, before, start = self.run.world, self.seconds, time.perf_counter()
        with self.modes():
            while self.seconds < until:
                self.step()
                self.images += self.plan.batch
                self.seconds = before + time.perf_counter() - start
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
                self.seconds = before + time.perf_counter() - start
        self.broken.settle(world)

    @abstractmethod
    def step(self) -> None:
        """Takes one optimizer step."""

    @abstractmethod
    def encoder(self) -> AbstractContextManager[Encode]:
        """Inside, the encoder in eval mode, without gradients."""

    def modes(self) -> AbstractContextManager:
        """Entered around each slice."""
        return nullcontext()

    def close(self) -> None:
        """Ends the dataloader workers."""
        self.prefetcher.close()


class OurSide(Side):
    """The run's own trainer."""

    name = OURS

    def __init__(self, run: TimedRun):
        super().__init__(run)
        self.trainer, model = BudgetTrainer(self), run.task.model
        self.prefetcher, self.broken = self.trainer.prefetcher, self.trainer.broken
        mode = "compiled" if run.cfg.TRAIN.compile else "eager"
        self.model = f"{model.encoder.title}, {model.head.name}, {model.target.title}, {model.loss.name}; {mode}"
        self.parameters = sum(each.numel() for each in self.trainer.train_state.parameters)

    def step(self) -> None:
        self.trainer.take_step()

    @contextmanager
    def encoder(self) -> Iterator[Encode]:
        with self.trainer.train_state.eval_mode() as model:
            yield lambda img_BCHW: model.encoder(img_BCHW).pooled("mean")  # type: ignore[operator]

    @contextmanager
    def modes(self) -> Iterator[None]:
        device = self.run.world.device
        with deterministic_kernels(self.run.settings.train.is_deterministic(device)), kept_memory(device):
            yield


class BudgetTrainer(Trainer):
    """A trainer without run folder and evaluations, whose schedule follows the clock of its side."""

    def __init__(self, side: Side):
        run = side.run
        super().__init__(run.task, run.settings, run.world, RunFolder(Path()))
        self.side, self.scheduled = side, self.plan.steps
        self.prefetcher = run.batches(self.plan, self.broken)
        self._start()
        self.model = self.train_state.wrap()

    def take_step(self) -> None:
        """Takes one optimizer step."""
        steps = math.ceil((self.step + 1) / max(self.side.progress, LEAST))  # of the budget, at the pace so far
        self.plan = replace(self.plan, epochs=steps, steps_per_epoch=1)
        self._train_step()
        self.monitor.look()

    def _update(self, step: int, loss: Tensor) -> Tensor:
        progress = self.side.progress
        at = int(progress * self.scheduled)
        return self.train_state.update(loss, lambda lr_scale: self.schedule.at(at, lr_scale), progress)


class PeerSide(Side):
    """A peer's model in a plain loop: our batches, precision, clipping and schedule, and fused AdamW."""

    def __init__(self, run: TimedRun, name: str, network: PeerModel):
        super().__init__(run)
        device, self.settings = run.world.device, run.settings.train
        self.name, self.differences = name, network.differences
        self.model = f"{network.title}; eager, fused AdamW"
        self.network = network.to(device).train()
        self.weights = [each for each in network.parameters() if each.requires_grad]
        self.parameters = sum(each.numel() for each in self.weights)
        self.optimizer = peer_optimizer(run.cfg, self.weights, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.settings.precision == "fp16")
        self.schedule, self.steps = self.plan.schedule(run.settings), 0
        self.preprocess: Preprocess = run.task.preprocess.to(device)
        self.broken = BrokenFiles(len(run.task.train_data), run.settings.max_broken)
        self.prefetcher = run.batches(self.plan, self.broken)

    def step(self) -> None:
        torch.manual_seed(derive_seed(self.run.settings.seed, self.name, self.steps))  # of its masks
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(int(self.progress * self.plan.steps))
        for _ in range(self.plan.accumulation):
            batch = self.prefetcher.next()
            img_BCHW = self.preprocess(batch.images_BCHW, batch.crops_B5)
            with autocast(self.settings.precision, self.run.world.device):
                loss = self.network(img_BCHW)
            self.scaler.scale(loss / self.plan.accumulation).backward()
            self.prefetcher.prefetch()
        if self.settings.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    @contextmanager
    def encoder(self) -> Iterator[Encode]:
        self.network.eval()
        with torch.no_grad():
            yield self.network.features
        self.network.train()
