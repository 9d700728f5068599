"""Recipes: when two runs have one recipe, whatever their seeds and wherever they ran."""

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from mim.lab.comparison.runs.provenance import InitialWeights
from mim.lab.comparison.runs.run import Run

Settings = dict[str, Any]
WITHOUT_EFFECT = (  # keys, and sections with a dot, that change neither what is learned nor how it is evaluated
    *("RECIPE", "PLUGINS", "INIT.take", "INIT.keep", "DATA.workers", "DATA.max_broken", "DATA.retry_s", "DATA.index"),
    *("CHECKPOINT.", "LOG.", "DISTRIBUTED."),
    *("EVALUATE.every_epochs", "EVALUATE.at_start", "EVALUATE.reconstructions", "EVALUATE.confusion"),
)
STATISTICS = ("DATA.mean", "DATA.std")
NEAR = 0.05  # in standard deviations: `estimate` draws its images by the seed


def recipe_of(run: Run) -> Settings:
    """The settings that make a run's recipe: without the seed and without what has no effect."""
    recipe = {key: value for key, value in run.settings.items() if key != "SEED" and not is_without_effect(key)}
    for key in filter(is_path, recipe):  # the last name: data may lie elsewhere on another machine
        value = str(recipe[key])
        recipe[key] = InitialWeights(value).name if key == "INIT.checkpoint" else PurePath(value).name
    steps = run.summary.get("steps")
    if not recipe.get("TRAIN.batch") and steps:  # 0: the batch of a step follows from the devices
        recipe["TRAIN.batch"] = round(run.summary.get("images_seen", 0) / steps)
    return recipe


def is_without_effect(key: str) -> bool:
    """Whether a key does not belong to the recipe."""
    return any(key.startswith(other) if other.endswith(".") else key == other for other in WITHOUT_EFFECT)


def is_path(key: str) -> bool:
    """Whether a key names a file or a folder."""
    return key in ("INIT.checkpoint", "LABELS.file", "LABELS.masks") or key.endswith((".path", "_path"))


def differing_keys(recipes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys in which any recipe differs from the first. Nearly equal means and deviations do not differ."""
    first, *others = recipes
    keys: dict[str, None] = {}
    for other in others:
        if not _near_statistics(first, other):
            keys.update(dict.fromkeys(STATISTICS))
        every = [key for key in dict.fromkeys([*first, *other]) if key not in STATISTICS]
        keys.update(dict.fromkeys(key for key in every if first.get(key) != other.get(key)))
    return list(keys)


def _near_statistics(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether DATA.mean and DATA.std can be estimates from the same data."""
    lists: list[Any] = [recipe.get(key) for key in STATISTICS for recipe in (first, second)]
    if lists[0] == lists[1] and lists[2] == lists[3]:
        return True
    if not all(isinstance(numbers, (list, tuple)) for numbers in lists) or len({len(numbers) for numbers in lists}) > 1:
        return False
    return all(
        abs(mean - other_mean) <= NEAR * std and math.isclose(std, other_std, rel_tol=NEAR)
        for mean, other_mean, std, other_std in zip(*lists, strict=True)
    )


def identity_of(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Settings as a hashable value."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


def images_per_epoch(run: Run) -> float | None:
    """Images of one epoch, without a last batch that is not full."""
    images, epochs = run.summary.get("images_seen"), run.summary.get("epochs")
    return images / epochs if images and epochs else None
