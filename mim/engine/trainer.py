"""Trainer: drives any task through its steps, on one device or many.

The step is `_train_step` and `_update`; all else is what happens between steps.
"""

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim.engine import checkpoint
from mim.engine.distributed import World
from mim.engine.failures import BrokenFiles, report_unhealthy
from mim.engine.feed import Feed
from mim.engine.modes import cast_once, deterministic_kernels, kept_memory, peak_memory, recompute_activations
from mim.engine.optim import parameter_groups, without_effect
from mim.engine.protocol import Task
from mim.engine.run_folder import RunFolder
from mim.engine.settings import EngineSettings, Plan
from mim.engine.telemetry import Meter, Reached, Stopwatch, Telemetry, log_progress
from mim.engine.watch import Health, Watch
from mim.ops.attention import choose_attention
from mim.ops.files import write_json
from mim.ops.seeding import derive_seed
from mim.structures import Place

LOG = logging.getLogger("mim")


class Trainer:
    """One run of one task.

    Raises ValueError where the settings do not fit the data set or the number of devices.
    """

    def __init__(self, task: Task, settings: EngineSettings, world: World, folder: RunFolder):
        self.task, self.settings, self.world, self.folder = task, settings, world, folder
        self.plan = Plan.of(settings, len(task.train_data), world.size)
        self.schedule = self.plan.schedule(settings)
        self.step = 0  # optimizer steps done
        self.first = 0  # the step this process began with
        self.seconds = 0.0  # of the processes that worked on this run before this one
        self.results: dict[str, Any] = {}  # the newest figures, for summary.json
        self.meter = Meter()
        train = settings.train
        for module in (task.model, *task.fixed):
            module.to(world.device)
        choose_attention(task.model, world.device)
        self.ema = AveragedModel(task.model, multi_avg_fn=get_ema_multi_avg_fn(train.ema)) if train.ema else None
        if train.activation_checkpointing:
            if not task.blocks():
                LOG.warning("TRAIN.activation_checkpointing has no effect: no part of this model names its blocks")
            recompute_activations(task.blocks())
        self.parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        factors = task.rate_factors(settings.optimizer.layer_decay)
        self.optimizer = settings.optimizer.build(parameter_groups(task.model, settings.optimizer, factors))
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=train.precision == "fp16")
        self.broken = BrokenFiles(len(task.train_data), settings.max_broken)
        self.watch = Watch(world.device, may_overflow=self.scaler.is_enabled())

    def resume(self, content: dict, path: Path) -> None:
        """Takes up a run where the checkpoint of `path` left it. Raises ValueError where it does not fit exactly."""
        if content["batch"] != self.plan.batch:
            raise ValueError(
                f"{path} was trained with a batch of {content['batch']}, and this run would have {self.plan.batch}: "
                f"set TRAIN.batch {content['batch']}, which then does not depend on the number of devices"
            )
        checkpoint.load_strict(self.task.model, content["model"], path)
        if self.ema is not None:
            checkpoint.load_strict(self.ema, content["ema"], path)
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.meter.restore(content["meter"])
        self.step = self.first = content["step"]
        self.seconds, self.results = content["seconds"], content["results"]
        if self.world.main:
            self.folder.cut_metrics(self.step)
        LOG.info("resumed from %s at step %s of %s", path, f"{self.step:,}", f"{self.plan.steps:,}")

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.step == self.plan.steps

    def run(self) -> dict:
        """Trains to the end, and gives what summary.json holds. Raises RunStopped where the run must end early."""
        self._saved = time.perf_counter()
        lines = {**self.task.describe(), **self.plan.describe(self.settings), "run folder": str(self.folder.path)}
        self.stopwatch = Stopwatch()
        place = (self.plan.steps, self.step, self._images_seen)
        telemetry = Telemetry(self.folder, self.settings.log, *place, self.world.main)
        deterministic = deterministic_kernels(self.settings.train.is_deterministic(self.world.device))
        with deterministic, kept_memory(self.world.device), telemetry as self.out:
            self.out.plan(lines, self._warnings())
            self.model = self._wrap()
            if self.step == 0 and self.settings.evaluate_at_start:
                self._evaluate()
            data, workers = self.task.train_data, self.settings.workers
            self.feed = Feed(data, self.plan, self.world, self.step, workers, self.broken)
            while not self.finished:
                self._train_step()
                self.out.advance(self.step)
                self._between_steps()
            return self._finish()

    # ---------------------------------------------------------------- the step

    def _train_step(self) -> None:
        """One optimizer step: forward and backward over its micro-batches, then the update. No host sync."""
        step, rate = self.step, self.schedule.at(self.step)
        torch.manual_seed(derive_seed(self.settings.seed, "step", step, self.world.rank))  # drop path draws from it
        loss = torch.zeros((), device=self.world.device)
        seen: tuple[int, ...] = ()
        with cast_once(self.world.device):
            for micro in range(self.plan.accumulation):
                with self.stopwatch.time("data"):
                    batch = self.feed.next()
                start = (micro * self.world.size + self.world.rank) * self.plan.micro
                place = Place(self.settings.seed, step, start, self.plan.batch)
                with self._synchronised(micro == self.plan.accumulation - 1):
                    with self._autocast():
                        micro_loss = self.task.loss(self.model, batch, place) / self.plan.accumulation
                    self.scaler.scale(micro_loss).backward()
                loss, seen = loss + micro_loss.detach(), seen + batch.indices
                self.feed.prefetch()
        norm = self._update(step)
        loss = self.world.sum(loss) / self.world.size
        self.meter.add(loss)
        self.watch.add(step, rate, seen, loss, norm)
        self.norm, self.rate, self.step = norm, rate, step + 1

    def _update(self, step: int) -> Tensor:
        """Clips, steps and clears; gives the gradient norm. Gradients that are not finite change no weight."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.train.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.train.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(step, group["factor"])
        if not self.scaler.is_enabled():  # a scaler does the same by itself
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.task.model)
        return norm

    # ---------------------------------------------------------------- between steps

    def _between_steps(self) -> None:
        ended = self.finished
        epochs, left = divmod(self.step, self.plan.steps_per_epoch)
        log = self.step % self.settings.log.every_steps == 0 or ended
        self._stop_if(self.watch.unhealthy(drain=log or left == 0))
        if log:
            self._log()
        if left == 0:
            self.broken.settle(self.world)
            self.results["train/loss"] = self.meter.take("epoch")
            every = self.settings.evaluate_every_epochs
            if ended or (every and epochs % every == 0):
                self._evaluate()
        every = self.settings.checkpoint.every_epochs
        minutes = self.settings.checkpoint.every_minutes
        due = minutes and time.perf_counter() - self._saved >= 60 * minutes
        if ended or due or (left == 0 and every and epochs % every == 0):
            self._save()

    def _log(self) -> None:
        """One line and one row: the log interval, where the host waits for the device."""
        self.broken.settle(self.world)
        images = self.plan.batch * self.meter.counts["line"]
        loss, norm = self.meter.take("line"), float(self.norm)  # host sync
        lap = self.stopwatch.lap()
        row = {
            "train/loss": loss,
            "train/learning_rate": self.rate,
            "train/gradient_norm": norm,
            "time/images_per_s": images / lap["train"],
            "time/data_share": lap["data"] / lap["train"],
        }
        if self.broken.reasons:
            row["data/broken_files"] = len(self.broken.reasons)
        self.out.row(self._reached, row)
        log_progress(self._reached, self.plan.epochs, self.plan.steps, row)

    def _evaluate(self) -> None:
        model = self.task.model if self.ema is None else self.ema.module
        model.eval()
        self.world.same(model.buffers())  # each rank gathers its own batch statistics, and the main rank's are saved
        eager = torch.compiler.set_stance("force_eager")  # other batch sizes, and nothing to gain
        with self.stopwatch.time("evaluate"), torch.no_grad(), self._autocast(), eager:
            report = self.task.evaluate(model, self.world)
        model.train()
        if self.step == 0:
            self.results.update({f"{name}_at_start": value for name, value in report.figures.items()})
        self.results.update({**report.figures, **report.details})
        self.out.evaluated(self._reached, report)
        if report.score:
            self._keep_best(report.score.rpartition("/")[2], report.figures[report.score])

    def _keep_best(self, name: str, score: float) -> None:
        """Writes best.pt where this evaluation is the best so far."""
        if score <= self.results.get(f"best/{name}", -torch.inf):
            return
        self.results.update({f"best/{name}": score, "best/epoch": self._reached.epoch})
        if self.world.main:
            with self.stopwatch.time("save"):
                checkpoint.write(self.folder.checkpoints / "best.pt", self._content())

    def _stop_if(self, health: Health | None) -> None:
        if health is None:
            return
        data = self.task.train_data
        suspects = [index for index in dict.fromkeys(health.indices) if not data.is_finite(index)]
        files = [data.source.describe(index) for index in health.indices]
        named = [data.source.describe(index) for index in suspects]
        raise report_unhealthy(health, self.folder, self.world, self._content(), files, named)

    def _save(self) -> None:
        """The main rank writes; the others go on, and meet it at the next step's gradients."""
        self._saved = time.perf_counter()
        if self.world.main:
            with self.stopwatch.time("save"):
                checkpoint.save(self.folder.checkpoints, self.step, self._content(), self.settings.checkpoint.keep)

    def _content(self) -> dict:
        return {
            "run": self.folder.identity,
            "step": self.step,
            "batch": self.plan.batch,
            "seconds": self._elapsed,
            "model": self.task.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state(),
            "results": dict(self.results),
            "config": self.folder.config.read_text(),
        }

    def _finish(self) -> dict:
        """The last figures, on every rank; written by the main one."""
        trained = self.stopwatch.total()["train"]
        summary = {
            "task": self.task.name,
            "epochs": self.plan.epochs,
            "steps": self.step,
            "images_seen": self._images_seen,
            **self.results,
            "images_per_s": (self.step - self.first) * self.plan.batch / trained,
            "seconds": self._elapsed,
            "peak_memory_bytes": peak_memory(self.world.device),
            **self.task.figures(),
        }
        if self.world.main:
            write_json(self.folder.summary, summary)
        LOG.info("finished after %.0f s: %s", self._elapsed, self.folder.summary)
        return summary

    # ---------------------------------------------------------------- small things

    @property
    def _images_seen(self) -> int:
        return self.step * self.plan.batch

    @property
    def _reached(self) -> Reached:
        return Reached(self.step, self.step / self.plan.steps_per_epoch, self._images_seen, self._elapsed)

    @property
    def _elapsed(self) -> float:
        return self.seconds + self.stopwatch.total()["elapsed"]

    def _warnings(self) -> list[str]:
        task, optimizer = self.task, self.settings.optimizer
        return [*self.schedule.warnings(), *without_effect(task.model, optimizer, task.rate_factors)]

    def _wrap(self) -> nn.Module:
        """The model as the step calls it: compiled inside, DDP outside."""
        model = self.task.model.train()
        if self.settings.train.compile:
            model.compile(fullgraph=True)
        return DistributedDataParallel(model, gradient_as_bucket_view=True) if self.world.size > 1 else model

    def _autocast(self) -> torch.autocast:
        train = self.settings.train
        return torch.autocast(self.world.device.type, train.dtype, enabled=train.precision != "fp32")

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Ranks exchange gradients in the last micro-batch of a step only."""
        return nullcontext() if last or self.world.size == 1 else self.model.no_sync()  # type: ignore[operator]
