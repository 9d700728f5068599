"""The trackers of a run: what LOG.trackers lists, names and mappings of keys, as parts with all of their keys."""

from collections.abc import Iterable, Mapping
from typing import Any

from mim.config import annotations, schema
from mim.io.formatting import printable
from mim.registry import one_of

KEY = "LOG.trackers"


def complete(entries: Iterable[str | Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Each entry as the mapping of its name and of every key of that tracker.

    Raises ValueError for an unknown tracker or key, a value of the wrong type, and a tracker that is listed twice.
    """
    trackers = tuple(_complete(f"{KEY}.{index}", entry) for index, entry in enumerate(entries))
    names = [tracker["name"] for tracker in trackers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{KEY} lists {name} {names.count(name)} times: list each tracker once")
    return trackers


def _complete(prefix: str, entry: str | Mapping[str, Any]) -> dict[str, Any]:
    """prefix: how the keys of the entry begin in messages."""
    texts = {"name": entry} if isinstance(entry, str) else annotations.as_text(dict(entry))
    if "name" not in texts:
        raise ValueError(f"{prefix} has no name: write the name of a tracker, or {{name: ..., KEY: VALUE}}")
    name = annotations.parse(f"{prefix}.name", texts.pop("name"), str)
    keys = schema.part_keys(KEY, name)
    for key in texts:
        if key not in keys:
            raise ValueError(
                f"unknown key {printable(f'{prefix}.{key}')} of {name}: {one_of(key, ('name', *keys))}. "
                f"`python -m mim train --keys {KEY}.{name}` explains them"
            )
    values = {
        key: annotations.parse(f"{prefix}.{key}", texts[key], kind.annotation) if key in texts else kind.default
        for key, kind in keys.items()
    }
    return {"name": name, **values}
