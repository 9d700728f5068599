"""RunLogger: writes the metrics of a run to its folder, its trackers, the log and the progress bar while it trains."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from mim.engine.bars import Bar, new_bar
from mim.engine.callbacks import Callbacks
from mim.engine.log import announce
from mim.engine.plan import EngineSettings, Plan
from mim.engine.protocol import Report
from mim.engine.run_folder import RunFolder
from mim.engine.trackers.base import RunProgress, TrackedRun
from mim.engine.trackers.tracking import Tracking
from mim.io.files import append_text, to_json, write_atomically
from mim.io.yaml import read_values
from mim.metric_keys import DATA_SHARE, GRADIENT_NORM, IMAGES_PER_S, LEARNING_RATE, TRAIN_LOSS

LOG = logging.getLogger("mim")
LINE, EPOCH = "line", "epoch"  # the spans of a Meter


class Meter:
    """Means of the loss and of other metrics of a step, since the last log line and in this epoch.

    The sums stay on the device until they are read. A value that is not finite does not count.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Tensor] = {}  # by span: sums and counts of its metrics, (2, metrics)
        self.keys: tuple[str, ...] = ()  # of the metrics
        self._restored: dict[str, dict[str, float]] = {}  # what `state` returned, until the first step

    def add(self, values: Tensor, keys: tuple[str, ...]) -> None:
        """Takes the metrics of one step in one tensor, the loss first, and their keys, equal ones in each step."""
        values, self.keys = values.detach().float(), keys
        finite = (values - values).eq_(0)  # few kernels: x - x is 0, or NaN, and eq_ gives 1.0 or 0.0
        step = torch.stack([values.nan_to_num(0.0, 0.0, 0.0), finite])
        for span in (LINE, EPOCH):
            if span in self._restored.get("sums", ()):
                parts = self._restored["sums"], self._restored["counts"]
                rows = [[part.get(_name(span, key), 0.0) for key in keys] for part in parts]
                self.tables[span] = torch.tensor(rows, device=step.device)
            self.tables[span] = self.tables[span] + step if span in self.tables else step
        self._restored = {}

    def take(self, span: str) -> dict[str, float]:
        """The mean of each metric of a span by its key, NaN where there is none; it starts again. A host sync."""
        if span not in self.tables:
            return {TRAIN_LOSS: math.nan}
        rows = zip(self.keys, *self.tables.pop(span).tolist(), strict=True)
        return {key: total / count if count else math.nan for key, total, count in rows}

    def state(self) -> dict:
        """Plain values for a checkpoint."""
        if self._restored:
            return self._restored
        rows = {span: table.tolist() for span, table in self.tables.items()}
        return {
            part: {
                _name(span, key): value for span in rows for key, value in zip(self.keys, rows[span][row], strict=True)
            }
            for row, part in enumerate(("sums", "counts"))
        }

    def restore(self, state: dict) -> None:
        """Takes what `state` returned."""
        self.tables, self._restored = {}, {part: dict(values) for part, values in state.items()}


def _name(span: str, key: str) -> str:
    """The name of a metric of a span in the state of a Meter."""
    return span if key == TRAIN_LOSS else f"{span}/{key}"


class RunLogger:
    """Writes on the main rank, and calls the callbacks there; on the others it does nothing. A context manager.

    plan: of the whole run; start: where this process begins; stopwatch: of the run, for the seconds of its callbacks.
    Raises ValueError where a tracker needs a package that is not installed.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: EngineSettings,
        plan: Plan,
        start: RunProgress,
        main: bool,
        callbacks: Callbacks,
        stopwatch: "Stopwatch",
    ):
        for tracker in settings.trackers:
            tracker.check()
        self.folder, self.settings, self.main = folder, settings, main
        self.callbacks, self.stopwatch = callbacks, stopwatch
        self.bar: Bar | None = None
        self._plan, self._start = plan, start

    def __enter__(self) -> Self:
        run = TrackedRun(self.folder, read_values(self.folder.config_text) or {}, self._start, tracked="")
        self.tracking = Tracking(self.settings.trackers if self.main else (), run)
        if self.main:
            self.bar = new_bar(self._plan.steps, self._start.step)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
        self.tracking.close(completed=error is None)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self.bar is not None:
            self.bar.advance(step)

    def plan(self, lines: dict[str, str], warnings: list[str]) -> None:
        """What the run is about to do: in the log, and for the trackers."""
        announce(lines, warnings)
        self.tracking.each(lambda tracker: tracker.plan(lines, self._start.images_seen))

    def step(self, progress: RunProgress, metrics: dict[str, float]) -> None:
        """The metrics of a step as a row and a log line."""
        self.row(progress, metrics)
        log_progress(progress, self._plan.epochs, self._plan.steps, metrics)
        with self.stopwatch.time("callbacks"):
            self.callbacks.step(progress, metrics)

    def row(self, progress: RunProgress, metrics: dict[str, float]) -> None:
        """One row of the metrics file, and the same values for the trackers."""
        if not self.main:
            return
        row = {
            "step": progress.step,
            "epoch": round(progress.epoch, 4),
            "images_seen": progress.images_seen,
            "seconds": round(progress.seconds, 3),
            **{name: value for name, value in metrics.items() if math.isfinite(value)},  # JSON has no other numbers
        }
        append_text(self.folder.metrics, to_json(row) + "\n")
        self.tracking.each(lambda tracker: tracker.metrics(metrics, progress))
        if self.bar is not None and TRAIN_LOSS in metrics:
            self.bar.note(f"loss {metrics[TRAIN_LOSS]:.4f}")

    def evaluated(self, progress: RunProgress, report: Report) -> None:
        """The metrics of an evaluation as a row and a log line, and its pictures."""
        self.row(progress, report.metrics)
        text = "  ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
        LOG.info("evaluated at epoch %.4g: %s", progress.epoch, text)
        for name, image_HWC in report.pictures.items():
            self.picture(name, progress, image_HWC)
        with self.stopwatch.time("callbacks"):
            self.callbacks.evaluation(progress, report)

    def picture(self, name: str, progress: RunProgress, image_HWC: Tensor) -> None:
        """A PNG in the run folder, in a folder of that name, and the same picture for the trackers."""
        if not self.main:
            return
        folder, image = self.folder.path / name, Image.fromarray(image_HWC.numpy())
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{progress.step}.png", lambda file: image.save(file, "PNG"))
        self.tracking.each(lambda tracker: tracker.picture(name, image_HWC.numpy(), progress))


class Stopwatch:
    """Seconds by kind of work: `evaluate`, `save`, `callbacks`, and `train` for all else, of which `data` is a part."""

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
        """Seconds since the start. Call it after a host sync."""
        elapsed = time.perf_counter() - self._start
        return {
            "elapsed": elapsed,
            "train": elapsed - sum(self._timed[kind] for kind in ("evaluate", "save", "callbacks")),
            "data": self._timed["data"],
        }

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap."""
        before, self._before = self._before, self.total()
        return {kind: seconds - before[kind] for kind, seconds in self._before.items()}


def log_progress(progress: RunProgress, epochs: int, steps: int, row: dict[str, float]) -> None:
    """The log line of a row of metrics."""
    rate = row[IMAGES_PER_S]
    LOG.info(
        "epoch %6.2f/%d  step %*d  loss %.4f  lr %.2e  norm %.2f  %s images/s  data %.0f%%",
        *(progress.epoch, epochs, len(str(steps)), progress.step),
        *(row[TRAIN_LOSS], row[LEARNING_RATE], row[GRADIENT_NORM]),
        *(f"{rate:,.{0 if rate >= 10 else 1}f}", 100 * row[DATA_SHARE]),
    )
