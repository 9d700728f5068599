"""Callback: what a program is told while a run trains. What one raises ends the run with nothing lost."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from mim.engine.protocol import Report
from mim.engine.trackers.base import RunProgress
from mim.errors import RunInterrupted

LOG = logging.getLogger("mim")


@runtime_checkable
class Callback(Protocol):
    """Is told of a run while it trains, for `mim.train(..., callbacks=[...])`. Both methods do nothing by default.

    A callback is an object of a subclass, or any object with both methods. They are called on the main rank alone, by
    the thread that trains and between two steps; their seconds do not count in images per second. Nothing that they
    draw at random changes the run.

    What a callback raises ends the run: no callback is called again, the log has a warning, and after the next step
    (on a GPU up to two steps later) a checkpoint is written and `mim.train` raises the error; the same call goes on
    from there. Other ranks raise RunInterrupted. To end a run on purpose, raise RunInterrupted. Where all steps are
    done, the run is finished first, and RunInterrupted has no effect.
    """

    def on_step(self, progress: RunProgress, metrics: Mapping[str, float]) -> None:
        """Called after the log line of a step: each LOG.every_steps steps, and after the last one.

        The device has finished these steps, and the host has waited for it. For a call after each step set
        LOG.every_steps 1, at the price of this wait in each.

        Args:
            progress: step, epoch, images seen and seconds.
            metrics: those of the row in metrics.jsonl, by key, such as `train/loss`, its mean since the last row. They
                may be NaN.
        """
        return  # so that a subclass may leave it out

    def on_evaluation(self, progress: RunProgress, report: Report) -> None:
        """Called after each evaluation, also that before the first step.

        Args:
            progress: step, epoch, images seen and seconds.
            report: its metrics by key, such as `val/loss`, and its pictures by name, (H, W, 3) uint8.
        """
        return


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises ValueError where an object has not the methods of a callback."""
    for each in callbacks:
        if isinstance(each, type):
            raise ValueError(f"callbacks has the class {each.__name__}: pass an object of it, {each.__name__}(...)")
        if not isinstance(each, Callback):
            raise ValueError(
                f"callbacks has an object of {type(each).__name__}, which lacks on_step or on_evaluation: make it a "
                "subclass of mim.Callback, which has both"
            )


class Callbacks:
    """The callbacks of a run, as its trainer calls them.

    Attributes: error, which one raised and with which the run must end; None for none.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = tuple(callbacks)
        self.error: Exception | None = None

    def step(self, progress: RunProgress, metrics: Mapping[str, float]) -> None:
        """After a log line."""
        self._each(lambda callback: callback.on_step(progress, dict(metrics)))

    def evaluation(self, progress: RunProgress, report: Report) -> None:
        """After an evaluation. Each callback has a report of its own, so that none changes what the run keeps."""

        def own() -> Report:
            metrics, pictures, details = dict(report.metrics), dict(report.pictures), dict(report.details)
            return replace(report, metrics=metrics, pictures=pictures, details=details)

        self._each(lambda callback: callback.on_evaluation(progress, own()))

    @property
    def request(self) -> RunInterrupted | None:
        """What a callback raised to end the run on purpose."""
        return self.error if isinstance(self.error, RunInterrupted) else None

    @property
    def reason(self) -> str:
        """What a callback raised, in words; empty for nothing."""
        return "" if self.error is None else f"{type(self.error).__name__}: {self.error}".removesuffix(": ")

    def settle(self) -> None:
        """Raises what a callback raised, unless it asked for the end on purpose. Called when all ranks have left."""
        if self.error is not None and self.request is None:
            raise self.error

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            if self.error is not None:
                return
            try:
                call(callback)
            except Exception as error:
                self.error = error
                LOG.warning("the callback %s ends the run: %s", type(callback).__name__, self.reason)
