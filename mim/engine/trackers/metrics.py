"""Telemetry: the figures of a run while it runs, in metrics.jsonl, TensorBoard, the log and the progress bar."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from PIL import Image
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from mim.engine.log import announce
from mim.engine.protocol import Report
from mim.engine.run_folder import RunFolder
from mim.engine.settings import LogSettings
from mim.engine.trackers.tensorboard import TensorBoardWriter
from mim.io.files import append_text, write_atomically
from mim.metric_keys import DATA_SHARE, GRADIENT_NORM, IMAGES_PER_S, LEARNING_RATE, TRAIN_LOSS

LOG = logging.getLogger("mim")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come. seconds: of work on it, by all processes that did some, evaluations included."""

    step: int
    epoch: float
    images_seen: int
    seconds: float


class Meter:
    """Means of the loss since the last line and over the current epoch, kept on the device until they are asked for.

    A loss that is not finite is left out.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {"line": 0.0, "epoch": 0.0}
        self.counts: dict[str, Tensor | float] = {"line": 0.0, "epoch": 0.0}

    def add(self, loss: Tensor) -> None:
        """Takes the loss of one step."""
        finite, known = loss.isfinite().float(), loss.detach().float().nan_to_num(0.0, 0.0, 0.0)
        for span in self.sums:
            self.sums[span] = self.sums[span] + known
            self.counts[span] = self.counts[span] + finite

    def take(self, span: str) -> float:
        """The mean of a span, which then starts anew; NaN of no loss at all. A host sync."""
        count = float(self.counts[span])
        mean = float(self.sums[span]) / count if count else math.nan
        self.sums[span], self.counts[span] = 0.0, 0.0
        return mean

    def state(self) -> dict:
        """Plain values for a checkpoint."""
        plain = [{span: float(value) for span, value in held.items()} for held in (self.sums, self.counts)]
        return {"sums": plain[0], "counts": plain[1]}

    def restore(self, state: dict) -> None:
        """The state that `state` gave."""
        self.sums = dict(state["sums"])
        self.counts = dict(state["counts"])


class Telemetry:
    """Writes what a run says, on the rank that writes; on any other it is silent. A context manager."""

    def __init__(self, folder: RunFolder, settings: LogSettings, steps: int, start: int, images_seen: int, main: bool):
        self.folder, self.settings, self.main = folder, settings, main
        self.tensorboard: TensorBoardWriter | None = None
        self.bar: Progress | None = None
        self._purge = images_seen if start else None
        self._steps, self._start = steps, start

    def __enter__(self) -> Self:
        if not self.main:
            return self
        if self.settings.tensorboard:
            self.tensorboard = TensorBoardWriter(self.folder.tensorboard, self._purge)
        console = get_console()
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=console, transient=True)
            self._task = self.bar.add_task("training", total=self._steps, completed=self._start, note="")
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.main:
            return
        if self.bar is not None:
            self.bar.stop()
        if self.tensorboard is not None:
            with suppress(OSError) if error is not None else nullcontext():  # a second error would hide the first
                self.tensorboard.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self.bar is not None:
            self.bar.update(self._task, completed=step)

    def plan(self, lines: dict[str, str], warnings: list[str]) -> None:
        """What the run is about to do, on the log and, as a table, in TensorBoard."""
        announce(lines, warnings)
        if self.tensorboard is not None:
            rows = "".join(f"\n| {name} | {text} |" for name, text in lines.items())
            self.tensorboard.text("plan", f"| | |\n|---|---|{rows}", self._purge or 0)

    def row(self, at: RunProgress, values: dict[str, float]) -> None:
        """One object in metrics.jsonl, and the same values in TensorBoard over images seen."""
        if not self.main:
            return
        place = {"step": at.step, "epoch": round(at.epoch, 4), "images_seen": at.images_seen}
        known = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no other numbers
        row = {**place, "seconds": round(at.seconds, 3), **known}
        append_text(self.folder.metrics, json.dumps(row) + "\n")
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.scalar(name, value, at.images_seen)
        if self.bar is not None and TRAIN_LOSS in values:
            self.bar.update(self._task, note=f"loss {values[TRAIN_LOSS]:.4f}")

    def evaluated(self, at: RunProgress, report: Report) -> None:
        """An evaluation's figures as a row and a line, and its pictures."""
        self.row(at, report.figures)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in report.figures.items())
        LOG.info("evaluated at epoch %.4g: %s", at.epoch, shown)
        for name, picture in report.pictures.items():
            self.picture(name, at, picture)

    def picture(self, name: str, at: RunProgress, image_HWC: Tensor) -> None:
        """A PNG in the run folder, in a folder of the picture's name, and the same picture in TensorBoard."""
        if not self.main:
            return
        folder, image = self.folder.path / name, Image.fromarray(image_HWC.numpy())
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{at.step}.png", lambda file: image.save(file, "PNG"))
        if self.tensorboard is not None:
            self.tensorboard.picture(name, image_HWC, at.images_seen)


class Stopwatch:
    """Seconds by kind of work. What is neither `evaluate` nor `save` is `train`, and `data` is a part of that."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._timed: defaultdict[str, float] = defaultdict(float)
        self._before = self.total()

    @contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Adds the seconds of a with-block to a kind."""
        start = time.perf_counter()
        yield
        self._timed[kind] += time.perf_counter() - start

    def total(self) -> dict[str, float]:
        """Seconds since the start; the host should have waited for the device before."""
        elapsed = time.perf_counter() - self._start
        return {
            "elapsed": elapsed,
            "train": elapsed - self._timed["evaluate"] - self._timed["save"],
            "data": self._timed["data"],
        }

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap."""
        before, self._before = self._before, self.total()
        return {kind: seconds - before[kind] for kind, seconds in self._before.items()}


def log_progress(at: RunProgress, epochs: int, steps: int, row: dict[str, float]) -> None:
    """The line of a log interval, from the values of its row."""
    rate = row[IMAGES_PER_S]
    LOG.info(
        "epoch %6.2f/%d  step %*d  loss %.4f  lr %.2e  norm %.2f  %s images/s  data %.0f%%",
        *(at.epoch, epochs, len(str(steps)), at.step),
        *(row[TRAIN_LOSS], row[LEARNING_RATE], row[GRADIENT_NORM]),
        *(f"{rate:,.{0 if rate >= 10 else 1}f}", 100 * row[DATA_SHARE]),
    )
