"""Which sections a task's config has, and which class each of them stands for.

A config is taken as any mapping of sections with attribute access; mim.config makes one from a file.
"""

from typing import Any, Literal, get_args

from yacs.config import CfgNode

from mim.config import annotations
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings, LabelSettings
from mim.data.sources.base import Source
from mim.encoders import Encoder
from mim.engine.optim import Optimizer
from mim.engine.schedule import ScheduleSettings
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings
from mim.heads import Head
from mim.io.formatting import short_repr
from mim.io.limits import BLOCKS, INTEGER, LARGEST
from mim.losses import Loss
from mim.maskers import Masker
from mim.readouts.settings import FinetuneHeadSettings, FreezeSettings, ProbeHeadSettings
from mim.registry import Component, Key, keys_of
from mim.structures import ImageSpec
from mim.targets import Target
from mim.tasks.settings import ClassifyEvaluateSettings, EvaluateSettings, InitSettings

TaskName = Literal["pretrain", "finetune", "linear_probe"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)


FAMILIES: dict[str, type[Component]] = {
    family.section: family for family in (Source, Masker, Encoder, Head, Target, Loss, Optimizer)
}
DEFAULT_PARTS = {
    "DATA": "digits",
    "MASKER": "random",
    "ENCODER": "vit",
    "HEAD": "transformer",
    "TARGET": "pixels",
    "LOSS": "mse",
    "OPTIMIZER": "adamw",
}
ORDER = (
    *("DATA", "LABELS", "AUGMENT", "MASKER", "ENCODER", "HEAD", "TARGET", "LOSS", "CLASSIFIER", "FREEZE", "INIT"),
    *("TRAIN", "OPTIMIZER", "SCHEDULE", "EVALUATE", "CHECKPOINT", "LOG", "DISTRIBUTED"),
)
SHARED: dict[str, type] = {
    "DATA": DataSettings,
    "INIT": InitSettings,
    "TRAIN": TrainSettings,
    "SCHEDULE": ScheduleSettings,
    "CHECKPOINT": CheckpointSettings,
    "LOG": LogSettings,
    "DISTRIBUTED": DistributedSettings,
}
SETTINGS: dict[str, dict[str, type]] = {
    "pretrain": {**SHARED, "AUGMENT": AugmentSettings, "EVALUATE": EvaluateSettings},
    "finetune": {
        **SHARED,
        "LABELS": LabelSettings,
        "AUGMENT": ClassifyAugmentSettings,
        "CLASSIFIER": FinetuneHeadSettings,
        "FREEZE": FreezeSettings,
        "EVALUATE": ClassifyEvaluateSettings,
    },
    "linear_probe": {
        **SHARED,
        "LABELS": LabelSettings,
        "AUGMENT": AugmentSettings,
        "CLASSIFIER": ProbeHeadSettings,
        "EVALUATE": ClassifyEvaluateSettings,
    },
}
ONLY_PRETRAINING = ("MASKER", "HEAD", "TARGET", "LOSS")


def sections(task: str) -> tuple[str, ...]:
    """The sections of a task's config, in their order."""
    families = [section for section in FAMILIES if task == "pretrain" or section not in ONLY_PRETRAINING]
    return tuple(section for section in ORDER if section in families or section in SETTINGS[task])


def section_keys(task: str, section: str, name: str) -> dict[str, Key]:
    """The keys of a section, of its settings and of the part `name` where it holds one.

    Raises ValueError where there is no such part, or one has a key that no value can be parsed for.
    """
    keys = keys_of(SETTINGS[task][section]) if section in SETTINGS[task] else {}
    if section not in FAMILIES:
        return keys
    keys = {**keys, **keys_of(FAMILIES[section].named(name))}
    for key, kind in keys.items():
        for strange in annotations.unknown(kind.annotation):
            raise ValueError(
                f"{section}.name {name}: its key {key} is annotated {strange}, and a config holds int, float, bool, "
                "str, Literal, tuples of these and unions"
            )
    return keys


def check_limits(cfg: CfgNode) -> None:
    """Raises ValueError for a number with which not even the shapes of a model could be made."""
    for section, held in cfg.items():
        keys = held if isinstance(held, CfgNode) else {section: held}
        for key, value in keys.items():
            name = f"{section}.{key}" if keys is held else key
            most = LARGEST.get(key, INTEGER)
            held_there = value if isinstance(value, list) else [value]
            numbers = [item for item in held_there if isinstance(item, int | float)]
            beyond = [item for item in numbers if abs(item) > most and (isinstance(item, int) or key in LARGEST)]
            if beyond:
                raise ValueError(f"{name} is {short_repr(value)}: it must be at most {most:,}")
            if key == "depths" and sum(numbers) > BLOCKS:
                raise ValueError(f"{name} is {short_repr(value)}: at most {BLOCKS:,} blocks in all")


def settings(cfg: CfgNode, section: str) -> Any:
    """The settings of a section as its dataclass. Raises ValueError where a value is out of range."""
    return SETTINGS[cfg.TASK][section](**_arguments(cfg, section, SETTINGS[cfg.TASK][section]))


def part(cfg: CfgNode, section: str, *context: Any) -> Any:
    """The part that a section names, built for its context."""
    cls = FAMILIES[section].named(cfg[section].name)
    return cls(*context, **_arguments(cfg, section, cls))


def image_spec(cfg: CfgNode) -> ImageSpec:
    """The images that a config's encoder is built for."""
    return ImageSpec(cfg.DATA.channels, *cfg.DATA.image_size)


def _arguments(cfg: CfgNode, section: str, cls: type) -> dict[str, Any]:
    """The keys of a section that a class takes, lists as tuples."""
    values = {key: cfg[section][key] for key in keys_of(cls)}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
