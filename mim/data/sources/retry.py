"""RetryingSource: reading as all of the program does it, with a wait for lost storage and a check of the pixels."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from mim.data.decoding.images import BrokenImage
from mim.data.decoding.values import check_values, wrong_kind
from mim.data.scaling import is_unchanged, scaled
from mim.data.sources.base import NeedOf, Source, Stored, size_of
from mim.errors import DataLost

LOG = logging.getLogger("mim")

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two looks at storage that is away


class RetryingSource:
    """Reads images of a source, and reads again after its storage was away, with a warning.

    All methods raise BrokenImage where the storage is there and the image cannot be read or has values that no model
    can compute with (see check_values), DataLost where the storage stays away for DATA.retry_s seconds, and ValueError
    where the source gives something else than an image (see wrong_kind).
    """

    def __init__(self, source: Source):
        self.source = source

    def read(self, index: int) -> Stored:
        """As Source.read, scaled by DATA.scale."""
        return self.scaled(self.read_stored(index))

    def read_stored(self, index: int) -> Stored:
        """As Source.read."""
        return self._checked(index, self._retry(lambda: self.source.read(index)))

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        """As Source.read_reduced; or, where `scaled` changes images, the whole image, scaled."""
        if not is_unchanged(self.source.settings):
            stored = self.read(index)
            return stored, size_of(stored)
        stored, size = self._retry(lambda: self.source.read_reduced(index, need_of))
        return self._checked(index, stored), size

    def scaled(self, stored: Stored) -> Stored:
        """An image under DATA.scale, with NaN for DATA.nodata. Raises BrokenImage where a pixel is infinite then."""
        settings = self.source.settings
        return stored if is_unchanged(settings) else check_values(scaled(stored, settings), settings)

    def mask(self, index: int) -> np.ndarray:
        """As Source.mask."""
        return self._retry(lambda: self.source.mask(index))

    def _checked(self, index: int, stored: Stored) -> Stored:
        channels = self.source.settings.channels
        if kind := wrong_kind(stored, channels):
            raise ValueError(
                f"{self.source.describe(index)} is {kind}, and DATA.channels is {channels}: a source gives an 8-bit "
                f"PIL image of that many channels, or a tensor ({channels}, height, width) of uint8, uint16 or float32"
            )
        return check_values(stored, self.source.settings)

    def _retry(self, read: Callable[[], T]) -> T:
        began: float | None = None
        while True:
            try:
                return read()
            except (BrokenImage, OSError) as error:
                if not _is_of_the_system(error) or (began is not None and not self.source.missing()):
                    raise
            began = time.monotonic() if began is None else began
            self._wait(began)  # after it, or where the storage is there, read again: it may have come back since

    def _wait(self, began: float) -> None:
        """Waits until the storage is there. began: of the outage, on the monotonic clock, which processes share."""
        limit, pause = self.source.settings.retry_s, FIRST_PAUSE
        reason = first_reason = self.source.missing()
        while reason:
            waited = time.monotonic() - began
            if waited >= limit:
                raise DataLost(
                    f"the images can no longer be read: {reason}. Waited {waited:.1f} s (DATA.retry_s {limit:g}). "
                    "Bring them back and start the same command again: a training run goes on from its last checkpoint"
                )
            time.sleep(min(pause, limit - waited))
            pause = min(2 * pause, LONGEST_PAUSE)
            reason = self.source.missing()
        if first_reason:
            ended = time.monotonic()
            LOG.warning(
                "the images could not be read for %.1f s (%s); they are back, and nothing was left out",
                *(ended - began, first_reason),
                extra={"outage": (began, ended)},
            )


def _is_of_the_system(error: Exception) -> bool:
    """Whether it came from a file or mount, and not from the content of a file."""
    cause = error.__cause__ if isinstance(error, BrokenImage) else error
    return isinstance(cause, OSError) and cause.errno is not None
