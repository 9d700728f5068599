"""Migration: what changed in the keys since 0.1.0, so that its configs and run folders still load."""

from collections.abc import Callable, Container
from typing import Any

Warn = Callable[..., None]  # takes a format and its arguments, as LOG.warning does

RENAMED = {"SCHEDULE.factor_on": "SCHEDULE.lr_scale_on"}
DROPPED = {  # keys that every part of the section had, and that had no effect with this one
    ("SCHEDULE", "cosine"): ("milestones", "gamma"),
    ("SCHEDULE", "multistep"): ("min_lr", "cosine_from"),
    ("SCHEDULE", "wsd"): ("milestones", "gamma", "cosine_from"),
}


def rename(raw: dict[str, Any], warn: Warn) -> dict[str, Any]:
    """The sections of a file with the keys of today's names."""
    raw = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in raw.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        if isinstance(raw.get(section), dict) and key in raw[section]:
            warn("%s is called %s since 0.2.0: rename it", old, new)
            raw[section].setdefault(new.partition(".")[2], raw[section].pop(key))
    return raw


def rename_pairs(pairs: dict[str, Any], warn: Warn) -> dict[str, Any]:
    """Overrides with the keys of today's names."""
    for old in RENAMED.keys() & pairs:
        warn("%s is called %s since 0.2.0: rename it", old, RENAMED[old])
    return {RENAMED.get(key, key): value for key, value in pairs.items()}


def drop(section: str, name: str, raw: dict[str, Any], known: Container[str], warn: Warn) -> dict[str, Any]:
    """The keys of a section without those that its part no longer has."""
    dropped = [key for key in DROPPED.get((section, name), ()) if key in raw and key not in known]
    for key in dropped:
        warn("%s.%s has no effect with %s.name %s: delete it", section, key, section, name)
    return {key: value for key, value in raw.items() if key not in dropped}
