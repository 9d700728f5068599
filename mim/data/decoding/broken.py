"""BrokenImage: the error for a file that is not read, and the notes about one that is read in part."""

import logging
import os
from collections.abc import Iterable

from mim.data.decoding.names import printable_name

LOG = logging.getLogger("mim")
_said: set[str] = set()  # notes of this process


class BrokenImage(Exception):
    """An image that cannot be read; its text is the reason."""


def say_once(notes: Iterable[str], file: object) -> None:
    """Warns of each note once in this process, with the first file that it is about.

    Args:
        notes: what of a file is not in the decoded image, or the reverse, such as "an alpha channel is left out".
        file: its path, or the name of its data set; bytes have no name.
    """
    for note in notes:
        if note not in _said:
            _said.add(note)
            name = printable_name(file) if isinstance(file, str | os.PathLike) else "an image"
            LOG.warning("%s: %s (not said again of others)", name, note, extra={"note": note})


def is_news(record: logging.LogRecord) -> bool:
    """False for a note of another process that this one knows already; it is known from then on."""
    note = getattr(record, "note", "")
    if note in _said:
        return False
    _said.update({note} - {""})
    return True
