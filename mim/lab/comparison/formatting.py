"""How values of keys, lists of names, and folders are written for people."""

import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ABSENT = "\N{EN DASH}"
MOST = 4  # names or values before the rest is counted


def value_text(value: Any) -> str:
    """A config value as YAML writes it, numbers in four digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_text, value))}]"
    return "(empty)" if value == "" else f"{value}"


def settings_text(settings: Mapping[str, Any], keys: Sequence[str], most: int) -> str:
    """`TRAIN.epochs 20, LABELS.share 0.1`, and how many more there are."""
    texts = [f"{key} {value_text(settings[key]) if key in settings else ABSENT}" for key in keys[:most]]
    return ", ".join([*texts, *([f"{len(keys) - most} more settings"] if len(keys) > most else [])])


def join_names(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`, `'a, b' and c`; of many names the first few, and how many more."""
    texts = list(map(quoted, names))
    if len(texts) > MOST:
        texts = [*texts[: MOST - 1], f"{len(texts) - MOST + 1} more"]
    return " and ".join([*([", ".join(texts[:-1])] if texts[:-1] else []), *texts[-1:]])


def quoted(name: str) -> str:
    """A name within a list, in quotes where it holds what separates names."""
    return f"'{name}'" if ", " in name or " and " in name or "; " in name else name


def by_value(values: Mapping[str, str], separator: str = "; ") -> str:
    """Which names have which value: `30 in MAE; 20 in SimMIM and BEiT`."""
    names_of: dict[str, list[str]] = {}
    for name, value in values.items():
        names_of.setdefault(value, []).append(name)
    texts = [f"{value} in {join_names(names)}" for value, names in names_of.items()]
    if len(texts) > MOST:
        texts = [*texts[: MOST - 1], f"{len(texts) - MOST + 1} other values elsewhere"]
    return separator.join(texts)


def capital(text: str) -> str:
    """The text as a heading; names such as kNN stay as they are."""
    return text[:1].upper() + text[1:] if text[:2].islower() else text


def on_one_line(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def natural_key(text: str) -> tuple[tuple[Hashable, ...], ...]:
    """A key that sorts texts by the numbers in them: `ratio-0.5` before `ratio-0.75`, `seed2` before `seed10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((1, float(part)) if index % 2 else (0, part) for index, part in enumerate(parts))


def display_path(path: Path) -> str:
    """A path relative to the working directory where it lies below it, else the path itself."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
