"""Migration: what changed in the keys of configs since 0.1.0, so that its configs and run folders still load."""

from collections.abc import Callable, Container, Mapping
from typing import Any

Warn = Callable[..., None]  # takes a format and its arguments, as LOG.warning does

RENAMED = {
    "SCHEDULE.factor_on": "SCHEDULE.lr_scale_on",
    **{f"CLASSIFIER.{key}": f"READOUT.{key}" for key in ("pool", "norm", "init_std")},
    "CLASSIFIER.rates": "PROBE.rates",
    "AUGMENT.smoothing": "CRITERION.smoothing",
}
VALUES = {
    "TASK": {"linear_probe": "probe"},
    "READOUT.norm": {"true": "layer", "false": "none"},
}  # old and new, as texts
DROPPED = {  # keys that every part of the section had, and that had no effect with this one
    ("SCHEDULE", "cosine"): ("milestones", "gamma"),
    ("SCHEDULE", "multistep"): ("min_lr", "cosine_from"),
    ("SCHEDULE", "wsd"): ("milestones", "gamma", "cosine_from"),
}


def _quiet(*message: Any) -> None:
    """Says nothing."""


def rename(raw: Mapping[str, Any], warn: Warn = _quiet) -> dict[str, Any]:
    """The sections of a file with the keys of today's names.

    A probe of several learning rates chose among them on the held-out images, and still does.
    """
    raw = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in raw.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        if isinstance(raw.get(section), dict) and key in raw[section]:
            warn("%s is called %s since 0.2.0: rename it", old, new)
            new_section, _, new_key = new.partition(".")
            value = raw[section].pop(key)
            target = raw.setdefault(new_section, {})
            if isinstance(target, dict):
                target.setdefault(new_key, _value(new, value))
            if old == "CLASSIFIER.rates" and isinstance(target, dict):
                target.setdefault("choose_share", "0")
    if raw.get("CLASSIFIER") == {}:
        del raw["CLASSIFIER"]
    return raw if "TASK" not in raw else {**raw, "TASK": _value("TASK", raw["TASK"])}


def rename_pairs(pairs: dict[str, Any], warn: Warn) -> dict[str, Any]:
    """Overrides with the keys of today's names."""
    for old in RENAMED.keys() & pairs:
        warn("%s is called %s since 0.2.0: rename it", old, RENAMED[old])
    renamed = {RENAMED.get(key, key): value for key, value in pairs.items()}
    return {key: _value(key, value) for key, value in renamed.items()}


def _value(key: str, value: Any) -> Any:
    """A value as it is written today. value: of a file, or a text."""
    return VALUES.get(key, {}).get(str(value).lower(), value)


def drop(section: str, name: str, raw: dict[str, Any], known: Container[str], warn: Warn) -> dict[str, Any]:
    """The keys of a section without those that its part no longer has."""
    dropped = [key for key in DROPPED.get((section, name), ()) if key in raw and key not in known]
    for key in dropped:
        warn("%s.%s has no effect with %s.name %s: delete it", section, key, section, name)
    return {key: value for key, value in raw.items() if key not in dropped}
