"""Which sections the config of a task has, and which settings class or family of parts each of them stands for."""

import importlib
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

from mim.config import annotations, catalogue, plugins
from mim.data.labels.settings import LabelSettings
from mim.data.settings import AugmentSettings, ClassifyAugmentSettings, DataSettings
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings
from mim.registry import Component, Key, keys_of, unknown_part
from mim.tasks.settings import (
    ClassifyEvaluateSettings,
    EvaluateSettings,
    FreezeSettings,
    InitSettings,
    ProbeSettings,
    TargetSettings,
)

TaskName = Literal["pretrain", "finetune", "probe"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

TOP: dict[str, Key] = {
    "TASK": Key(TaskName, "pretrain", "what the run trains."),
    "SEED": Key(int, 0, "of all that is random; at least 0."),
    "RECIPE": Key(str, "", "name of the shipped recipe that this file follows, for `plan`; empty for none."),
    "PLUGINS": Key(tuple[str, ...], (), "Python modules with parts of yours, imported before the parts are looked up."),
}


class Family(NamedTuple):
    """A family of parts: the module that founds it, its class, and the name of the part that is the default."""

    module: str
    cls: str
    default: str
    hint: str = ""  # where else a name may belong, for the message that a part is unknown


FAMILIES = {
    "DATA": Family("mim.data.sources.base", "Source", "digits"),
    "AUGMENTATION": Family("mim.data.augmentations.base", "Augmentation", "none"),
    "MASKER": Family("mim.maskers.base", "Masker", "random"),
    "ENCODER": Family(
        "mim.encoders.base", "Encoder", "vit", ", and a model of timm is ENCODER.name timm ENCODER.model NAME"
    ),
    "HEAD": Family("mim.heads.base", "Head", "transformer"),
    "TARGET": Family("mim.targets.base", "Target", "pixels"),
    "LOSS": Family("mim.losses", "Loss", "mse"),
    "READOUT": Family("mim.readouts.base", "Readout", "linear"),
    "CRITERION": Family("mim.criteria.base", "Criterion", "cross_entropy"),
    "OPTIMIZER": Family(
        "mim.engine.optim.base", "Optimizer", "adamw", ", and timm's are OPTIMIZER.name timm OPTIMIZER.optimizer NAME"
    ),
    "SCHEDULE": Family("mim.engine.schedule", "Schedule", "cosine"),
    "LOG.trackers": Family("mim.engine.trackers.base", "Tracker", "tensorboard"),  # a key that lists parts, no section
}
ORDER = (
    *("DATA", "LABELS", "AUGMENT", "AUGMENTATION", "MASKER", "ENCODER", "HEAD", "TARGET", "LOSS"),
    *("READOUT", "CRITERION", "PROBE", "FREEZE", "INIT"),
    *("TRAIN", "OPTIMIZER", "SCHEDULE", "EVALUATE", "CHECKPOINT", "LOG", "DISTRIBUTED"),
)
SHARED: dict[str, type] = {
    "DATA": DataSettings,
    "INIT": InitSettings,
    "TRAIN": TrainSettings,
    "CHECKPOINT": CheckpointSettings,
    "LOG": LogSettings,
    "DISTRIBUTED": DistributedSettings,
}
LABELLED = {**SHARED, "LABELS": LabelSettings, "EVALUATE": ClassifyEvaluateSettings}
FINETUNING = {"AUGMENT": ClassifyAugmentSettings, "FREEZE": FreezeSettings}
SETTINGS: dict[str, dict[str, type]] = {
    "pretrain": {**SHARED, "AUGMENT": AugmentSettings, "TARGET": TargetSettings, "EVALUATE": EvaluateSettings},
    "finetune": {**LABELLED, **FINETUNING},
    "probe": {**LABELLED, "AUGMENT": AugmentSettings, "PROBE": ProbeSettings},
}
ONLY_PRETRAINING = ("MASKER", "HEAD", "TARGET", "LOSS")
ONLY_WITH_LABELS = ("READOUT", "CRITERION")
# defaults of a part that another task has: MAE's linear probe, main_linprobe.py
DEFAULTS: dict[tuple[str, str, str], dict[str, Any]] = {
    ("probe", "READOUT", "linear"): {"pool": "class", "norm": "batch", "init_std": 0.01},
}


def sections(task: str) -> tuple[str, ...]:
    """The sections of a task's config, in their order."""
    others = ONLY_WITH_LABELS if task == "pretrain" else ONLY_PRETRAINING
    families = [section for section in FAMILIES if section not in others]
    return tuple(section for section in ORDER if section in families or section in SETTINGS[task])


def family(section: str) -> type[Component]:
    """The family of parts of a section, imported."""
    return getattr(importlib.import_module(FAMILIES[section].module), FAMILIES[section].cls)


def part_names(section: str) -> list[str]:
    """The names of the parts of a section: the shipped ones, and those registered in this process."""
    module = FAMILIES[section].module
    registered = family(section).members() if module in sys.modules else {}
    return list(dict.fromkeys([*catalogue.names(module), *registered]))


def part_keys(section: str, name: str) -> dict[str, Key]:
    """The keys of a part; of a shipped one without importing it. Raises ValueError where there is no such part."""
    if name in catalogue.names(FAMILIES[section].module):
        with suppress(TypeError):  # a new file, which may write its keys in another way
            return catalogue.keys(FAMILIES[section].module, name)
    problems = "" if name in part_names(section) else plugins.import_installed()
    if name not in part_names(section):
        unknown = unknown_part(section, name, part_names(section))
        own = f". A part of yours needs its module in PLUGINS{FAMILIES[section].hint}"
        raise ValueError(unknown + own + problems)
    return keys_of(family(section).named(name))


def section_keys(task: str, section: str, name: str) -> dict[str, Key]:
    """The keys of a section: of its settings, and of the part `name` where it has one.

    Raises ValueError where there is no such part, or one has a key that no value can be parsed for.
    """
    keys = keys_of(SETTINGS[task][section]) if section in SETTINGS[task] else {}
    if section not in FAMILIES:
        return keys
    own = part_keys(section, name)
    if both := keys.keys() & own:
        raise ValueError(f"{section}.name {name}: its key {min(both)} is one of all parts of {section}: rename it")
    defaults = DEFAULTS.get((task, section, name), {})
    own = {key: replace(kind, default=defaults[key]) if key in defaults else kind for key, kind in own.items()}
    keys = {**keys, **own}
    for key, kind in keys.items():
        for annotation in annotations.unknown(kind.annotation):
            raise ValueError(
                f"{section}.name {name}: its key {key} is annotated {annotation}, and a config holds int, float, bool, "
                "str, Literal, tuples of these and unions"
            )
    return keys
