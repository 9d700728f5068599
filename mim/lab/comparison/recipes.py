"""Recipes: when two runs are of one recipe, whatever their seeds and wherever they ran."""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mim.lab.comparison.formatting import ABSENT, value_text
from mim.lab.comparison.provenance import Start
from mim.lab.comparison.runs import Run
from mim.lab.layout import seedless

Settings = dict[str, Any]
WITHOUT_EFFECT = (  # keys, and sections with a dot, that change neither what is learned nor how it is judged
    *("RECIPE", "PLUGINS", "DATA.workers", "DATA.max_broken", "DATA.retry_s", "CHECKPOINT.", "LOG.", "DISTRIBUTED."),
    *("EVALUATE.every_epochs", "EVALUATE.at_start", "EVALUATE.reconstructions", "EVALUATE.confusion"),
)
STATISTICS = ("DATA.mean", "DATA.std")
NEAR = 0.05  # in standard deviations: `estimate` draws its images by the seed


def counted(run: Run) -> Settings:
    """The settings that make a run's recipe: no seed, nothing without effect, and of a path its last name alone, since
    data may lie elsewhere on another machine.
    """
    found = {
        key: _last_name(key, value) if is_path(key) else value
        for key, value in run.settings.items()
        if key != "SEED" and not without_effect(key)
    }
    steps = run.figures.get("steps")
    if not found.get("TRAIN.batch") and steps:  # 0: what one step had follows from the devices
        found["TRAIN.batch"] = round(run.figures.get("images_seen", 0) / steps)
    return found


def without_effect(key: str) -> bool:
    """Whether a key stands apart from the recipe."""
    return any(key.startswith(free) if free.endswith(".") else key == free for free in WITHOUT_EFFECT)


def is_path(key: str) -> bool:
    """Whether a key names a file or a folder."""
    return key == "INIT.checkpoint" or key.endswith((".path", "_path"))


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys in which two recipes differ. Means and deviations of images that are nearly equal do not."""
    keys = dict.fromkeys([*first, *second])
    found = [key for key in keys if key not in STATISTICS and first.get(key) != second.get(key)]
    return found if near_statistics(first, second) else [*STATISTICS, *found]


def near_statistics(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether DATA.mean and DATA.std are those of the same images, give or take which of them were looked at."""
    lists: list[Any] = [side.get(key) for key in STATISTICS for side in (first, second)]
    if lists[0] == lists[1] and lists[2] == lists[3]:
        return True
    if not all(isinstance(numbers, (list, tuple)) for numbers in lists) or len({len(numbers) for numbers in lists}) > 1:
        return False
    return all(
        abs(mean - other_mean) <= NEAR * std and math.isclose(std, other_std, rel_tol=NEAR)
        for mean, other_mean, std, other_std in zip(*lists, strict=True)
    )


def as_identity(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Settings as a value that can be compared and counted."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


def in_words(settings: Mapping[str, Any], keys: list[str], most: int) -> str:
    """`TRAIN.epochs 20, LABELS.share 0.1`, and how many more there are."""
    told = [f"{key} {value_text(settings[key]) if key in settings else ABSENT}" for key in keys[:most]]
    return ", ".join([*told, *([f"{len(keys) - most} more settings"] if len(keys) > most else [])])


def images_an_epoch(run: Run) -> float | None:
    """Images that one epoch shows, but for a last batch that is not full."""
    images, epochs = run.figures.get("images_seen"), run.figures.get("epochs")
    return images / epochs if images and epochs else None


def _last_name(key: str, value: Any) -> str:
    if key == "INIT.checkpoint":
        return seedless(Start(str(value), None).run_folder.name)
    return PurePath(str(value)).name
