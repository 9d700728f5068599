"""Reading that outlasts a place that is gone for a while: it waits and tries again, and says so.

An image that cannot be read in a place that is well is no matter of this file: it is a broken image.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from mim.data.batch import Note
from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Source
from mim.errors import DataLost

T = TypeVar("T")
FIRST, LONGEST = 0.1, 5.0  # seconds between looks at a place that is gone


def patient(source: Source, read: Callable[[], T], notes: list[Note]) -> T:
    """What `read` gives, read again after the place of a source was gone; each wait that succeeded adds a note.

    Raises BrokenImage where the place is there and the image is not to be read, DataLost where the place stays away.
    """
    try:
        return read()
    except (BrokenImage, OSError) as error:
        if not _of_the_system(error):
            raise
    began = time.monotonic()
    while True:
        note = await_return(source, began)
        if note is not None:
            notes.append(note)
        try:
            return read()  # also where the place is there: it may have come back since
        except (BrokenImage, OSError) as error:
            if not _of_the_system(error) or not source.missing():
                raise


def await_return(source: Source, began: float) -> Note | None:
    """Waits until the place of a source is there, if it is gone. began: of the waiting, on the monotonic clock.

    Raises DataLost after DATA.retry_s seconds.
    """
    clock, limit, pause = time.time(), source.settings.retry_s, FIRST
    reason = first = source.missing()
    while reason:
        waited = time.monotonic() - began
        if waited >= limit:
            raise DataLost(
                f"the images can no longer be read: {reason}. Waited {waited:.1f} s (DATA.retry_s {limit:g}). Bring it "
                "back and start the same command again: the run goes on from its last checkpoint"
            )
        time.sleep(min(pause, limit - waited))
        pause = min(2 * pause, LONGEST)
        reason = source.missing()
    if not first:
        return None
    ended = time.time()
    text = f"the images could not be read for {ended - clock:.1f} s ({first}); they are back, and nothing was left out"
    return Note(first.partition(": ")[0], text, clock, ended)


def _of_the_system(error: Exception) -> bool:
    """Whether it came from a file or mount, and not from what a file holds."""
    cause = error.__cause__ if isinstance(error, BrokenImage) else error
    return isinstance(cause, OSError) and cause.errno is not None
