"""How a config differs from the recipe that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mim.build import image_spec
from mim.config import Config, load_config
from mim.config.recipes import recipe_file, recipe_names

Group = Literal["in effect", "method", "training", "data and machine"]
METHOD = ("TASK", "MASKER.", "ENCODER.", "HEAD.", "TARGET.", "LOSS.", "CLASSIFIER.", "FREEZE.", "INIT.")
MACHINE = ("TRAIN.compile", "TRAIN.activation_checkpointing", "TRAIN.deterministic")
TRAINING = ("AUGMENT.", "LABELS.", "TRAIN.", "OPTIMIZER.", "SCHEDULE.")
ORDER: tuple[Group, ...] = ("in effect", "method", "training", "data and machine")
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key, or what follows from several, with its value in this config and in the recipe; `-` where it has none."""

    group: Group
    key: str
    here: str
    there: str


@dataclass(frozen=True, slots=True)
class Published:
    """The recipe that a config names, and how it differs; None where its file is not at hand."""

    name: str
    differences: tuple[Difference, ...] | None


def compare(cfg: Config, devices: int) -> Published | None:
    """What differs from the recipe under RECIPE, on so many devices; None where it names none."""
    if not cfg.RECIPE:
        return None
    if cfg.RECIPE not in recipe_names():
        return Published(cfg.RECIPE, None)
    other = load_config(recipe_file(cfg.RECIPE))
    found = [
        Difference("in effect", name, told(cfg, devices), told(other, devices))
        for name, told in DERIVED.items()
        if told(cfg, devices) != told(other, devices)
    ]
    ours, theirs = cfg.flat(), other.flat()
    found += [
        Difference(_group(key), key, _text(ours.get(key, ABSENT)), _text(theirs.get(key, ABSENT)))
        for key in dict.fromkeys([*ours, *theirs])
        if key != "RECIPE" and ours.get(key) != theirs.get(key)
    ]
    return Published(cfg.RECIPE, tuple(sorted(found, key=lambda difference: ORDER.index(difference.group))))


def _group(key: str) -> Group:
    if key.startswith(METHOD):
        return "method"
    return "training" if key.startswith(TRAINING) and key not in MACHINE else "data and machine"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) or "(empty)"


def _batch(cfg: Config, devices: int) -> int:
    return cfg.TRAIN.batch or cfg.DATA.batch_size * devices


def _rate(cfg: Config, devices: int) -> str:
    optimizer = cfg.OPTIMIZER.build()
    return f"{optimizer.base_lr * _batch(cfg, devices) / optimizer.per_batch:.3g}"


def _hidden(cfg: Config, devices: int) -> str:
    if cfg.TASK != "pretrain":
        return ABSENT
    masker = cfg.MASKER.build(image_spec(cfg))
    return f"{masker.cells - masker.visible} of {masker.cells} ({masker.ratio:.1%})"


def _warmup(cfg: Config, devices: int) -> str:
    return f"{cfg.SCHEDULE.warmup_epochs / cfg.TRAIN.epochs:.1%}"


DERIVED: dict[str, Callable[[Config, int], str]] = {
    "learning rate at its peak": _rate,
    "batch of a step": lambda cfg, devices: f"{_batch(cfg, devices):,}",
    "epochs": lambda cfg, devices: f"{cfg.TRAIN.epochs:,}",
    "share of them warmup": _warmup,
    "hidden cells": _hidden,
}
