"""Values and names from files and command lines, as messages print them: on one line and of limited length."""

from typing import Any

LONGEST = 200  # characters of one value or name


def short_repr(value: Any) -> str:
    """`repr(value)`, shortened in its middle where it is long."""
    return _shortened(repr(value), LONGEST)


def printable(name: str, longest: int = LONGEST) -> str:
    """A name on one line, control characters escaped, shortened in its middle where it is long; '' for an empty one."""
    text = _shortened(name, longest)
    return (text if text.isprintable() else "".join(map(_escaped, text))) or "''"


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
