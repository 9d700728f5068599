"""Values and names from files and command lines, as messages print them: on one line and of limited length."""

from collections.abc import Sequence
from typing import Any

LONGEST = 200  # characters of one value or name
LISTED = 8  # names of a list


def short_repr(value: Any) -> str:
    """`repr(value)`, shortened in its middle where it is long."""
    return _shortened(repr(value), LONGEST)


def printable(name: str, longest: int = LONGEST) -> str:
    """A name on one line, control characters escaped, shortened in its middle where it is long; '' for an empty one."""
    text = _shortened(name, longest)
    return (text if text.isprintable() else "".join(map(_escaped, text))) or "''"


def list_names(names: Sequence[str]) -> str:
    """The names of a list, or the first of many and how many there are."""
    first = ", ".join(printable(name, 60) for name in names[:LISTED])
    return first if len(names) <= LISTED else f"{first} and {len(names) - LISTED:,} more"


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}... ({len(text):,} characters) ...{text[-longest // 4 :]}"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # Python stores a byte that is not UTF-8 as this surrogate
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
