"""Words: the words of a command line become pairs of a key and a value."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from mim.config import schema
from mim.errors import ConfigError
from mim.io.formatting import printable, short_repr

KEY = re.compile(r"[A-Z][A-Z_]*(\.|$)")  # the beginning of one
LIKE_A_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")  # perhaps a mistaken one
FILES = ("path", "checkpoint")  # the ends of keys that name files


def pairs_of_words(words: Sequence[Any]) -> list[tuple[Any, Any]]:
    """KEY VALUE pairs. Raises ConfigError for a key without a value or with several, and for KEY=VALUE."""
    _check_one_value(list(map(str, words)))
    for word in map(str, words[::2]):
        key, equals, value = word.partition("=")
        if equals:
            raise ConfigError(
                f"{printable(word)}: a key and its value are two words: {printable(key)} {printable(value)}"
            )
    if len(words) % 2:
        raise ConfigError(f"overrides come in pairs, KEY VALUE: {short_repr(words[-1])} has no value")
    return list(zip(words[::2], words[1::2], strict=True))


def _check_one_value(words: Sequence[str]) -> None:
    """Raises ConfigError where a key has several values, such as the files for which a shell replaced a pattern."""
    for position in range(2, len(words), 2):
        key, word = words[position - 2], words[position]
        if not KEY.match(key) or KEY.match(word) or "=" in word:
            continue
        names_files = key.endswith(FILES)
        is_mistaken = word.partition(".")[0].upper() in (*schema.TOP, *schema.ORDER)
        if LIKE_A_KEY.fullmatch(word) and (is_mistaken or not names_files):
            continue
        values = list(takewhile(lambda value: not KEY.match(value), words[position - 1 :]))
        way_out = f'Write a list as one word: {printable(key)} "[{",".join(map(printable, values))}]"'
        if names_files:
            way_out = (
                f"Put a pattern in quotes, so that the shell leaves it as it is: {printable(key)} 'a-{{000..146}}.tar'"
            )
        text = " ".join(map(printable, values if len(values) <= 3 else [values[0], "...", values[-1]]))
        raise ConfigError(f"{printable(key)} takes one value and has {len(values)}: {text}. {way_out}")
