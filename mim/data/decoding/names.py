"""Names of files: in printable form, and as bytes."""

import os

from mim.io.formatting import printable

LONGEST = 1000  # characters; a path of more is cut in its middle


def printable_name(name: str | os.PathLike[str]) -> str:
    """A file's name, or a reason with one in it, on one line, with control characters escaped; a path may be long."""
    text = os.fspath(name)
    return printable(text, LONGEST) if text else ""


def encoded(name: str) -> bytes:
    """The bytes of a file's name, for its hash."""
    return name.encode("utf-8", "surrogateescape")
