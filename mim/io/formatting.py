"""Words: values and names from files and command lines, as messages show them: on one line, and not endless."""

from typing import Any

MOST = 200  # characters of one value or name


def shown(value: Any) -> str:
    """A value as Python writes it, a text in quotes; cut where it is long."""
    return _cut(repr(value), MOST)


def plain(name: str, most: int = MOST) -> str:
    """A name without quotes, unless it is empty: line breaks, control characters and bytes that are no UTF-8 escaped.

    Cut in its middle where it has more than `most` characters.
    """
    text = _cut(name, most)
    return (text if text.isprintable() else "".join(map(_escaped, text))) or "''"


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}... ({len(text):,} characters) ...{text[-most // 4 :]}"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
