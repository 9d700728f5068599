"""Event files for TensorBoard. An I/O error names the log folder, whichever thread of the writer met it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor


class TensorBoardWriter:
    """Event files in a folder; what was written there for more than `purge` images seen is void. A context manager.

    Raises OSError, which names the folder, where nothing can be written.
    """

    def __init__(self, folder: Path, purge: int | None):
        from torch.utils.tensorboard import SummaryWriter  # a second to import, and not every run needs it

        self._folder = folder
        self._hook, threading.excepthook = threading.excepthook, self._quiet
        try:
            with self._named():
                self._writer = SummaryWriter(str(folder), purge_step=purge)
        except OSError:
            threading.excepthook = self._hook
            raise

    def text(self, name: str, text: str, at: int) -> None:
        """Markdown. at: images seen, as in all that follows."""
        with self._named():
            self._writer.add_text(name, text, at)

    def scalar(self, name: str, value: float, at: int) -> None:
        """A point of a curve."""
        with self._named():
            self._writer.add_scalar(name, value, at)

    def picture(self, name: str, image_HWC: Tensor, at: int) -> None:
        """A picture, (H, W, 3) uint8."""
        with self._named():
            self._writer.add_image(name, image_HWC.numpy(), at, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        try:
            with self._named():
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def _quiet(self, told: threading.ExceptHookArgs) -> None:
        """The writing thread passes its errors on to the next call; it need not print them, too."""
        if not isinstance(told.exc_value, OSError):
            self._hook(told)
