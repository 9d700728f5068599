"""Event files for TensorBoard. I/O errors name the log folder, in whichever thread they occur."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor


class TensorBoardWriter:
    """Event files in a folder. Every x-axis counts images seen.

    Args:
        folder: where the files are.
        purge: what was written there for this number of images and more is void; None keeps all.

    Raises OSError, which names the folder, where nothing can be written.
    """

    def __init__(self, folder: Path, purge: int | None):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and not every run needs it

        self._folder = folder
        self._hook, threading.excepthook = threading.excepthook, self._skip_os_errors
        try:
            with self._naming_folder():
                self._writer = SummaryWriter(str(folder), purge_step=purge)
        except OSError:
            threading.excepthook = self._hook
            raise

    def text(self, name: str, text: str, images_seen: int) -> None:
        """Adds Markdown."""
        with self._naming_folder():
            self._writer.add_text(name, text, images_seen)

    def scalar(self, name: str, value: float, images_seen: int) -> None:
        """Adds a point to a curve."""
        with self._naming_folder():
            self._writer.add_scalar(name, value, images_seen)

    def picture(self, name: str, image_HWC: Tensor, images_seen: int) -> None:
        """Adds a picture, (H, W, 3) uint8."""
        with self._naming_folder():
            self._writer.add_image(name, image_HWC.numpy(), images_seen, dataformats="HWC")

    def close(self) -> None:
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
