"""RecipeComparison: how a config differs from the recipe that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from mim.build import image_spec
from mim.config import Config, load_config
from mim.config.keys import as_written
from mim.config.recipes import recipe_file, recipe_names

Group = Literal["in effect", "method", "training", "data and machine"]
METHOD = (
    "TASK",
    "MASKER.",
    "ENCODER.",
    "HEAD.",
    "TARGET.",
    "LOSS.",
    "READOUT.",
    "CRITERION.",
    "PROBE.",
    "FREEZE.",
    "INIT.",
)
MACHINE = ("TRAIN.compile", "TRAIN.activation_checkpointing", "TRAIN.deterministic")
TRAINING = ("AUGMENT.", "AUGMENTATION.", "LABELS.", "TRAIN.", "OPTIMIZER.", "SCHEDULE.")
ORDER: tuple[Group, ...] = get_args(Group)
OF_THE_FILE = ("RECIPE", "INIT.take", "INIT.keep")  # they say where values are from, not what is trained
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value differs, or something that follows from several keys."""

    group: Group  # which keys it belongs to
    key: str  # its name
    here: str  # the value in this config; `-` where there is none
    there: str  # the value in the recipe


@dataclass(frozen=True, slots=True)
class RecipeComparison:
    """A config and the recipe that it names."""

    name: str  # of the recipe
    differences: tuple[Difference, ...] | None  # None where the file of the recipe is not here


def compare_recipe(cfg: Config, devices: int) -> RecipeComparison | None:
    """How a config differs from its RECIPE, on this number of devices; None where it names none."""
    if not cfg.RECIPE:
        return None
    if cfg.RECIPE not in recipe_names():
        return RecipeComparison(cfg.RECIPE, None)
    other = load_config(recipe_file(cfg.RECIPE))
    derived = [(name, value(cfg, devices), value(other, devices)) for name, value in DERIVED.items()]
    differences = [Difference("in effect", *values) for values in derived if values[1] != values[2]]
    ours, theirs = cfg.flat(), other.flat()
    differences += [
        Difference(_group(key), key, as_written(ours.get(key, ABSENT)), as_written(theirs.get(key, ABSENT)))
        for key in dict.fromkeys([*ours, *theirs])
        if key not in OF_THE_FILE and ours.get(key) != theirs.get(key) and not _is_default_alone(key, cfg, other)
    ]
    return RecipeComparison(cfg.RECIPE, tuple(sorted(differences, key=lambda each: ORDER.index(each.group))))


def _is_default_alone(key: str, cfg: Config, other: Config) -> bool:
    """Whether only the part of one of the two has a key, and its file does not set it."""
    owners = [each for each in (cfg, other) if key in each.flat()]
    return len(owners) == 1 and owners[0].set_keys is not None and key not in owners[0].set_keys


def _group(key: str) -> Group:
    if key.startswith(METHOD):
        return "method"
    return "training" if key.startswith(TRAINING) and key not in MACHINE else "data and machine"


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


DERIVED: dict[str, Callable[[Config, int], str]] = {
    "learning rate at its peak": _rate,
    "batch of a step": lambda cfg, devices: f"{_batch(cfg, devices):,}",
    "epochs": lambda cfg, devices: f"{cfg.TRAIN.epochs:,}",
    "share of epochs in warmup": lambda cfg, devices: f"{cfg.SCHEDULE.warmup_epochs / cfg.TRAIN.epochs:.1%}",
    "hidden cells": _hidden,
}
