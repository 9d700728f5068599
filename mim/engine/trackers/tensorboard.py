"""TensorBoard: event files. I/O errors name their folder, in whichever thread they occur."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mim.engine.trackers.base import RunProgress, TrackedRun, Tracker, as_markdown


class TensorBoard(Tracker, name="tensorboard"):
    """Event files in the folder tensorboard of the run: metrics, pictures, and what the run is about to do.

    A run that is resumed goes on in the same folder, and what was written there after its checkpoint is hidden.
    """

    _folder: Path

    def start(self, run: TrackedRun) -> str:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and not every run needs it

        self._folder = run.folder.tensorboard
        self._hook, threading.excepthook = threading.excepthook, self._skip_os_errors
        try:
            with self._naming_folder():
                self._writer = SummaryWriter(str(self._folder), purge_step=run.start.images_seen or None)
        except OSError:
            threading.excepthook = self._hook
            raise
        return ""

    def plan(self, lines: Mapping[str, str], images_seen: int) -> None:
        with self._naming_folder():
            self._writer.add_text("plan", as_markdown(lines), images_seen)

    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        with self._naming_folder():
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, progress.images_seen)

    def picture(self, name: str, image_HWC: np.ndarray, progress: RunProgress) -> None:
        with self._naming_folder():
            self._writer.add_image(name, image_HWC, progress.images_seen, dataformats="HWC")

    def close(self, completed: bool) -> None:
        """Writes what is left."""
        try:
            with self._naming_folder():
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    @contextmanager
    def _naming_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def _skip_os_errors(self, arguments: threading.ExceptHookArgs) -> None:
        """The writing thread passes its errors to the next call, so it need not print them."""
        if not isinstance(arguments.exc_value, OSError):
            self._hook(arguments)
