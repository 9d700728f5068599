"""Words: values of keys, lists of names, and folders, as people are told of them."""

import os
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

ABSENT = "\N{EN DASH}"
SHOWN = 4  # names or values before the rest is counted


def value_text(value: Any) -> str:
    """A config value as YAML would have it, numbers in four digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_text, value))}]"
    return "(empty)" if value == "" else f"{value}"


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of very many the first few and how many more."""
    found = list(names)
    if len(found) > SHOWN:
        found = [*found[: SHOWN - 1], f"{len(found) - SHOWN + 1} more"]
    return " and ".join([*([", ".join(found[:-1])] if found[:-1] else []), *found[-1:]])


def spread(values: Mapping[str, str]) -> str:
    """Who has which value: `30 in MAE; 20 in SimMIM and BEiT`."""
    holders: dict[str, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(value, []).append(name)
    found = [f"{value} in {listed(names)}" for value, names in holders.items()]
    if len(found) > SHOWN:
        found = [*found[: SHOWN - 1], f"{len(found) - SHOWN + 1} other values elsewhere"]
    return "; ".join(found)


def natural(text: str) -> tuple[tuple[Hashable, ...], ...]:
    """A key that sorts texts by the numbers in them: `ratio-0.5` before `ratio-0.75`, `seed2` before `seed10`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((1, float(part)) if place % 2 else (0, part) for place, part in enumerate(parts))


def shown_path(path: Path) -> str:
    """A path from here where it lies below, else the whole path."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here


def first_line(error: BaseException) -> str:
    """What went wrong, in one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
