"""Trainer: drives any task through its steps, on one device or many.

The step is `_train_step` and `_update`. All other methods belong to what happens between steps.
"""

import logging
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim import metric_keys as keys
from mim.engine.callbacks import Callbacks
from mim.engine.distributed.world import World
from mim.engine.failures import BrokenFiles, Skipped
from mim.engine.modes import cast_once, deterministic_kernels, kept_memory, peak_memory
from mim.engine.plan import EngineSettings, Plan
from mim.engine.precision import autocast, resolve_precision
from mim.engine.prefetcher import Prefetcher
from mim.engine.protocol import StepContext, Task, share_of, step_loss
from mim.engine.run_folder import RunFolder
from mim.engine.saver import Saver
from mim.engine.signals import EndRequests, note_end_requests
from mim.engine.start import describe_start, start_warnings
from mim.engine.step_status import StepMonitor, StepStatus
from mim.engine.trackers.base import RunProgress
from mim.engine.trackers.metrics import EPOCH, LINE, Meter, RunLogger, Stopwatch
from mim.engine.train_state import TrainState
from mim.errors import RunStopped
from mim.io.files import write_json
from mim.ops.seeding import derive_seed

LOG = logging.getLogger("mim")


class Trainer:
    """One run of one task.

    Raises ValueError where the settings do not fit the data set or the number of devices.
    """

    def __init__(
        self, task: Task, settings: EngineSettings, world: World, folder: RunFolder, callbacks: Callbacks | None = None
    ):
        precision = resolve_precision(settings.train.precision, world.device)
        settings = replace(settings, train=replace(settings.train, precision=precision))
        self.task, self.settings, self.world, self.folder = task, settings, world, folder
        self.plan = Plan.of(settings, len(task.train_data), world.size)
        self.schedule = self.plan.schedule(settings)
        self.step = 0  # number of optimizer steps so far
        self.first = 0  # the step with which this process began
        self.seconds = 0.0  # of the processes of this run before this one
        self.results: dict[str, Any] = {}  # the newest metrics, for the summary
        self.meter = Meter()
        self.train_state = TrainState(task, settings, world)
        self.broken = BrokenFiles(len(task.train_data), settings.max_broken)
        self.skipped = Skipped(settings.train.max_skipped, folder, world)
        self.monitor = StepMonitor(world.device, may_overflow=self.train_state.scaler.is_enabled())
        self.requests = EndRequests()
        self.callbacks = callbacks if callbacks is not None and world.main else Callbacks(())

    def resume(self, content: dict, path: Path) -> None:
        """Continues from the checkpoint of `path`. Raises ValueError where it does not fit exactly."""
        if content["batch"] != self.plan.batch:
            raise ValueError(
                f"{path} was trained with a batch of {content['batch']}, and this run would have {self.plan.batch}: "
                f"set TRAIN.batch {content['batch']}, which then does not depend on the number of devices"
            )
        if content["step"] > self.plan.steps:
            raise ValueError(
                f"{path} was written after step {content['step']}, and this run has {self.plan.steps} steps: set "
                "TRAIN.epochs as in the run that wrote it, or name another --output"
            )
        self.train_state.load(content, path)
        self.meter.restore(content["meter"])
        self.step = self.first = content["step"]
        self.skipped.count = content.get("skipped", 0)
        self.seconds, self.results = content["seconds"], content["results"]
        if self.world.main:
            self.folder.cut_metrics(self.step)
        LOG.info("resumed from %s at step %s of %s", path, f"{self.step:,}", f"{self.plan.steps:,}")

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.step == self.plan.steps

    def run(self, lines: dict[str, str] | None = None) -> dict:
        """Trains to the end and returns the content of the summary. lines: more lines for the start of the run.

        Raises RunStopped where the run must end early, RunInterrupted where it was asked to end.
        """
        self._start()
        main, clock = self.world.main, self.stopwatch
        logger = RunLogger(self.folder, self.settings, self.plan, self._progress, main, self.callbacks, clock)
        deterministic = deterministic_kernels(self.settings.train.is_deterministic(self.world.device))
        memory = kept_memory(self.world.device)
        with deterministic, memory, logger as self.logger, note_end_requests() as self.requests, self.saver:
            warnings = start_warnings(self.task, self.plan, self.settings, self.world)
            self.logger.plan({**self._describe(), **(lines or {})}, warnings)
            self.model = self.train_state.wrap()
            if self.task.prepares:
                with self._autocast(), self.train_state.eval_mode() as model:
                    self.task.before_first_step(model, self.world, self.folder.path)
            if self.step == 0 and self.settings.evaluate_at_start:
                self._evaluate()
            data, workers = self.task.train_data, self.settings.workers
            self.prefetcher = Prefetcher(data, self.plan, self.world, self.step, workers, self.broken)
            with closing(self.prefetcher):
                while not self.finished:
                    self._train_step()
                    self.logger.advance(self.step)
                    self._between_steps()
            return self._finish()

    def _start(self) -> None:
        """Starts the clocks of this process."""
        self._logged, self.stopwatch = self.step, Stopwatch()  # the step of the newest log line
        self.saver = Saver(self.folder, self.settings.checkpoint, self.world, self.stopwatch, self._content)

    # ---------------------------------------------------------------- the step

    def _train_step(self) -> None:
        """One optimizer step: forward and backward over its micro-batches, then the update. No host sync."""
        step, rate = self.step, self.schedule.at(self.step)
        torch.manual_seed(derive_seed(self.settings.seed, "step", step, self.world.rank))  # for drop path
        parts: list[Tensor] = []  # of each micro-batch its share of the loss of the step, then of its metrics
        indices: tuple[int, ...] = ()
        with cast_once(self.world.device):
            for micro in range(self.plan.accumulation):
                self.world.set_phase(f"reading images of step {step}")
                with self.stopwatch.time("data"):
                    batch = self.prefetcher.next()
                self.world.set_phase(f"computing step {step}")
                start = (micro * self.world.size + self.world.rank) * self.plan.micro_batch
                context = StepContext(self.settings.seed, step, start, self.plan.batch)
                with self._synchronised(micro == self.plan.accumulation - 1):
                    with self._autocast():
                        result = step_loss(self.task.loss(self.model, batch, context))
                    self.train_state.scaler.scale(share_of(result.loss, self.plan.accumulation)).backward()
                parts, indices = [*parts, share_of(result.values(), self.plan.accumulation)], indices + batch.indices
                self.prefetcher.prefetch()
        flags = parts[0].new_zeros(2)  # whether this rank was asked to end the run, and whether a checkpoint is due
        for number, flag in enumerate((self.requests.signal_name or self.callbacks.error, self.saver.is_due())):
            if flag:
                flags[number] = 1
        totals = self.world.sum(torch.cat([flags, share_of(sum(parts[1:], parts[0]), self.world.size)]))
        end, save, loss = totals[:3].unbind()
        norm = self._update(step, loss)
        self.task.after_step((step + 1) / self.plan.steps)
        self.meter.add(totals[2:], (keys.TRAIN_LOSS, *result.metrics))
        self.monitor.add(step, rate, indices, (loss, norm, end, save))
        self.norm, self.rate, self.step = norm, rate, step + 1

    def _update(self, step: int, loss: Tensor) -> Tensor:
        """Changes the weights and returns the gradient norm."""
        return self.train_state.update(loss, lambda lr_scale: self.schedule.at(step, lr_scale), step / self.plan.steps)

    # ---------------------------------------------------------------- between steps

    def _between_steps(self) -> None:
        self.world.set_phase(f"done with step {self.step - 1}")
        epochs, left = divmod(self.step, self.plan.steps_per_epoch)
        log = self.step % self.settings.log.every_steps == 0 or self.finished
        statuses = self.monitor.look(drain=log or left == 0)
        for status in statuses:
            if status.harmful:
                self._skip(status)
        if log:
            self._log()
        if left == 0:
            self.broken.settle(self.world)
            self.results.update(self.meter.take(EPOCH))
            every = self.settings.evaluate_every_epochs
            if self.finished or (every and epochs % every == 0):
                self._evaluate()
        interrupted = any(status.end_requested for status in statuses) and not self.finished
        due = any(status.save_due and status.step >= self.saver.step for status in statuses)
        stable_until = self.schedule.stable_until
        if self.finished or interrupted or due or self.saver.wants(self.step, self.plan.steps_per_epoch, stable_until):
            self.saver.save(self.step, stable_until, wait=self.finished or interrupted)
        if interrupted:
            raise self.callbacks.request or self.requests.ending(self.step, self.plan.steps, self.callbacks.reason)

    def _log(self) -> None:
        """One log line and one row of metrics. The host waits for the device."""
        self.broken.settle(self.world)
        images = self.plan.batch * (self.step - self._logged)
        means, norm = self.meter.take(LINE), float(self.norm)  # host sync
        lap, self._logged = self.stopwatch.lap(), self.step
        row = {
            **means,
            keys.LEARNING_RATE: self.rate,
            keys.GRADIENT_NORM: norm,
            keys.IMAGES_PER_S: images / lap["train"],
            keys.DATA_SHARE: lap["data"] / lap["train"],
            **self.train_state.metrics(),
            **self.broken.metrics(),
        }
        self.logger.step(self._progress, row)

    def _evaluate(self) -> None:
        self.world.set_phase(f"evaluating after step {self.step}")
        # each rank has batch statistics of its own, and a checkpoint holds those of the main rank
        self.world.copy_from_main(self.train_state.evaluated.buffers())
        with self.stopwatch.time("evaluate"), self._autocast(), self.train_state.eval_mode() as model:
            report = self.task.evaluate(model, self.world)
        if self.step == 0:
            self.results.update({keys.at_start(name): value for name, value in report.metrics.items()})
        self.results.update({**report.metrics, **report.details})
        self.logger.evaluated(self._progress, report)
        self._keep_best(report.score, report.metrics)

    def _keep_best(self, score: str, metrics: dict[str, float]) -> None:
        """Writes the best checkpoint where this evaluation is the best so far."""
        if not score or metrics[score] <= self.results.get(keys.best(score), -torch.inf):
            return
        best = {keys.best(key): metrics[key] for key in (score, keys.on_held_out(score)) if key in metrics}
        self.results.update({**best, keys.BEST_EPOCH: self._progress.epoch})
        self.saver.write(self.folder.best)

    def _skip(self, status: StepStatus) -> None:
        """Counts a step that changed nothing; where it is one too many, saves the state and ends the run."""
        files = [self.task.train_data.source.describe(index) for index in status.indices]
        try:
            self.skipped.add(status, self.train_state.scaler.get_scale(), files)
        except RunStopped:
            self.saver.write(self.folder.checkpoints / f"nonfinite-step-{status.step}.pt")
            raise

    def _content(self) -> dict:
        """The state of the run, on the main rank; empty on the others, which take part in the gathering."""
        state = self.train_state.state(offload=not self.settings.checkpoint.asynchronous)
        if not self.world.main:
            return {}
        return {
            "run": self.folder.run,
            "step": self.step,
            "batch": self.plan.batch,
            "seconds": self._elapsed,
            **state,
            "meter": self.meter.state(),
            "skipped": self.skipped.count,
            "results": dict(self.results),
            "config": self.folder.config_text,
            **self.task.metadata(),
        }

    def _finish(self) -> dict:
        """Returns the summary, on every rank. The main rank writes it."""
        trained = self.stopwatch.total()["train"]
        summary = {
            **{"task": self.task.name, "epochs": self.plan.epochs, "steps": self.step},
            "images_seen": self._images_seen,
            **self.results,
            **self.broken.metrics(),
            "images_per_s": (self.step - self.first) * self.plan.batch / trained,
            "seconds": self._elapsed,
            **({} if (memory := peak_memory(self.world.device)) is None else {"peak_memory_bytes": memory}),
            **self.task.metrics(),
        }
        for warning in self.task.warnings(self.results):
            LOG.warning("%s", warning)
        if self.world.main:
            write_json(self.folder.summary, summary)
        LOG.info("finished after %.0f s: %s", self._elapsed, self.folder.summary)
        return summary

    # ---------------------------------------------------------------- small things

    @property
    def _images_seen(self) -> int:
        return self.step * self.plan.batch

    @property
    def _progress(self) -> RunProgress:
        return RunProgress(self.step, self.step / self.plan.steps_per_epoch, self._images_seen, self._elapsed)

    @property
    def _elapsed(self) -> float:
        return self.seconds + self.stopwatch.total()["elapsed"]

    def _describe(self) -> dict[str, str]:
        """What the run is about to do, a line each."""
        stored = self.task.train_data.stored_type()
        return {
            **describe_start(self.task, self.plan, self.settings, self.world.device, stored),
            "devices": self.world.describe(self.settings.distributed.strategy),
            "run folder": str(self.folder.path),
        }

    def _autocast(self) -> torch.autocast:
        return autocast(self.settings.train.precision, self.world.device)

    def _synchronised(self, last: bool) -> AbstractContextManager:
        """Ranks exchange gradients only in the last micro-batch of a step."""
        return self.train_state.strategy.exchange(self.model, now=last)
