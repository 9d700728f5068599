"""Saver: when the state of a run is written, and where."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from mim.engine import checkpoint
from mim.engine.background_writer import BackgroundWriter
from mim.engine.distributed.world import World
from mim.engine.run_folder import RunFolder
from mim.engine.settings import CheckpointSettings
from mim.engine.trackers.metrics import Stopwatch


class Saver:
    """Writes the checkpoints of a run. Every rank calls it; the main rank writes, in the background where
    CHECKPOINT.asynchronous says so. A context manager, which ends when all is written.

    Args:
        gather: returns the state of the run on the main rank, and nothing on the others, which take part in it.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: CheckpointSettings,
        world: World,
        stopwatch: Stopwatch,
        gather: Callable[[], dict],
    ):
        self.folder, self.settings, self.world, self.stopwatch = folder, settings, world, stopwatch
        self.gather = gather
        self.step = 0  # of the newest checkpoint of this process
        self._time = time.perf_counter()
        self._background = BackgroundWriter() if settings.asynchronous and world.main else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._background is not None:
            self._background.close(error)

    def is_due(self) -> bool:
        """By the clock of the main rank. The others get it with the sum of the losses.

        Raises the error of a checkpoint that was written in the background since the last call.
        """
        if self._background is not None:
            self._background.check()
        minutes = self.settings.every_minutes
        return self.world.main and bool(minutes) and time.perf_counter() - self._time >= 60 * minutes

    def wants(self, step: int, steps_per_epoch: int, stable_until: int | None) -> bool:
        """Whether every_epochs asks for a checkpoint after a step, or the schedule, whose stable phase ends there."""
        epochs, left = divmod(step, steps_per_epoch)
        every = self.settings.every_epochs
        return step == stable_until or (left == 0 and bool(every) and epochs % every == 0)

    def save(self, step: int, stable_until: int | None = None, wait: bool = False) -> None:
        """A checkpoint to resume from. The other ranks wait for the main one at the next step.

        Args:
            step: the number of steps so far.
            stable_until: the newest one of the steps up to that is kept beside the CHECKPOINT.keep newest.
            wait: return when it is on the disk, also where it is written in the background.
        """
        self.world.set_phase(f"saving after step {step}")
        self.step, self._time = step, time.perf_counter()
        self._write(
            partial(checkpoint.save, self.folder.checkpoints, step, keep=self.settings.keep, until=stable_until)
        )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until all is on the disk. Raises the error of a checkpoint that was written in the background."""
        if self._background is not None:
            with self.stopwatch.time("save"):
                self._background.wait()

    def write(self, path: Path) -> None:
        """A checkpoint from which no run is resumed."""
        self._write(partial(checkpoint.write, path))

    def _write(self, write: Callable[[dict], object]) -> None:
        with self.stopwatch.time("save"):
            content = self.gather()
            if content and self._background is not None:
                self._background.add(content, write)
            elif content:
                write(content)
