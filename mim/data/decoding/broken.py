"""BrokenImage: the error for a file that is not read, and the notes about one that is read in part."""

import logging
import os
from collections.abc import Callable, Iterable

from mim.data.decoding.names import printable_name

LOG = logging.getLogger("mim")

Say = Callable[[Iterable[str], object], None]  # takes notes on a file, and its path; bytes have no name


class BrokenImage(Exception):
    """An image that cannot be read; its text is the reason."""


class Notes:
    """Warns of each note once, with the first file that it is about.

    A note tells what of a file is not in the decoded image, or the reverse, such as "an alpha channel is left out".
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, notes: Iterable[str], file: object) -> None:
        """Warns of new notes. file: its path, or the name of its data set; bytes have no name."""
        for note in notes:
            if note not in self._said:
                self._said.add(note)
                name = printable_name(file) if isinstance(file, str | os.PathLike) else "an image"
                LOG.warning("%s: %s (not said again of others)", name, note, extra={"note": note})

    def is_news(self, record: logging.LogRecord) -> bool:
        """False for a note of another process that was said here already; it counts as said from then on."""
        note = getattr(record, "note", "")
        if note in self._said:
            return False
        self._said.update({note} - {""})
        return True


def say_each(notes: Iterable[str], file: object) -> None:
    """Warns of each note."""
    Notes()(notes, file)
