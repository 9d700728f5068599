"""Config: one complete, checked and frozen tree of settings and parts."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yacs.config import CfgNode

from mim.config import annotations, schema
from mim.config.parts import PartConfig, PartList, section_content, settings_values
from mim.data.labels.settings import LabelSettings
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings
from mim.io.sections import all_places, flatten, places
from mim.registry import Key, one_of
from mim.tasks.settings import FreezeSettings, InitSettings, ProbeSettings


@dataclass(frozen=True)
class Config:
    """A complete config: TASK, SEED, RECIPE, PLUGINS and the sections of the task, each an attribute.

    `cfg.TRAIN` is the TrainSettings of the run, `cfg.ENCODER` a PartConfig, and `cfg.TARGET` a PartList where it is a
    list. Raises AttributeError for a section that the task does not have.
    """

    TASK: schema.TaskName
    SEED: int
    RECIPE: str
    PLUGINS: tuple[str, ...]
    sections: Mapping[str, Any]
    set_keys: frozenset[str] | None = field(default=None, repr=False, compare=False)  # keys that were set; None: all
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)  # what it has from INIT.checkpoint, for a log
    DATA: PartConfig = field(init=False, repr=False, compare=False)
    LABELS: LabelSettings = field(init=False, repr=False, compare=False)
    AUGMENT: Any = field(init=False, repr=False, compare=False)
    AUGMENTATION: PartConfig | PartList = field(init=False, repr=False, compare=False)
    MASKER: PartConfig = field(init=False, repr=False, compare=False)
    ENCODER: PartConfig = field(init=False, repr=False, compare=False)
    HEAD: PartConfig = field(init=False, repr=False, compare=False)
    TARGET: PartConfig | PartList = field(init=False, repr=False, compare=False)
    LOSS: PartConfig | PartList = field(init=False, repr=False, compare=False)
    READOUT: PartConfig | PartList = field(init=False, repr=False, compare=False)
    CRITERION: PartConfig = field(init=False, repr=False, compare=False)
    PROBE: ProbeSettings = field(init=False, repr=False, compare=False)
    FREEZE: FreezeSettings = field(init=False, repr=False, compare=False)
    INIT: InitSettings = field(init=False, repr=False, compare=False)
    TRAIN: TrainSettings = field(init=False, repr=False, compare=False)
    OPTIMIZER: PartConfig = field(init=False, repr=False, compare=False)
    SCHEDULE: PartConfig = field(init=False, repr=False, compare=False)
    EVALUATE: Any = field(init=False, repr=False, compare=False)
    CHECKPOINT: CheckpointSettings = field(init=False, repr=False, compare=False)
    LOG: LogSettings = field(init=False, repr=False, compare=False)
    DISTRIBUTED: DistributedSettings = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for section, content in self.sections.items():
            object.__setattr__(self, section, content)

    @classmethod
    def of(cls, values: Mapping[str, Any], set_keys: frozenset[str] | None = None) -> "Config":
        """The tree of all keys and, by section, of all keys below. Raises ValueError where a value is out of range.

        set_keys: the keys that were set, and are no defaults; None for all.
        """
        task = values["TASK"]
        top = {key: values[key] for key in schema.TOP}
        sections = {name: section_content(task, name, values[name]) for name in schema.sections(task)}
        return cls(**top, sections=sections, set_keys=set_keys)

    def values(self) -> dict[str, Any]:
        """Every key with its value, those of a section as a dict."""
        top = {key: getattr(self, key) for key in schema.TOP}
        return {**top, **{name: _values(content) for name, content in self.sections.items()}}

    def flat(self) -> dict[str, Any]:
        """Every key with its section, as in TRAIN.epochs or TARGET.1.weight, with its value."""
        return flatten(self.values())

    def parts(self, section: str) -> tuple[PartConfig, ...]:
        """The parts of a section: one, or several where it is a list."""
        content = getattr(self, section)
        return content.parts if isinstance(content, PartList) else (content,)

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """This config with other values: `cfg.replace({"DATA.mean": mean, "DATA.std": std})`.

        Raises ValueError for an unknown key, and for a value of the wrong type or out of range.
        """
        tree = self.values()
        by_place = {**all_places({name: tree[name] for name in self.sections}), "": tree}
        for key, value in values.items():
            place, _, inner = key.rpartition(".")
            keys = self._keys(place, by_place)
            if inner not in keys:
                raise ValueError(f"unknown key {key}: {one_of(key, self.flat())}")
            by_place[place][inner] = annotations.parse(key, annotations.as_text(value), keys[inner].annotation)
        set_keys = None if self.set_keys is None else self.set_keys | values.keys()
        return dataclasses.replace(Config.of(tree, set_keys), notes=self.notes)

    def _keys(self, place: str, by_place: Mapping[str, Any]) -> dict[str, Key]:
        """The keys of a place, as of TRAIN or TARGET.1; for an empty text, those at the top."""
        if place not in by_place:
            return {}
        section = place.partition(".")[0]
        return schema.section_keys(self.TASK, section, by_place[place].get("name", "")) if section else schema.TOP

    def to_yaml(self) -> str:
        """The config as YAML, which load_config and yacs read back to the same values."""
        return _to_yaml(self.values())

    def set_keys_yaml(self) -> str:
        """The keys that were set, as YAML; with the defaults, and what INIT.checkpoint knows, they are this config."""
        if self.set_keys is None:
            return self.to_yaml()
        tree: dict[str, Any] = {}
        for name, content in self.values().items():
            if name not in self.sections:
                tree |= {name: content} if name in self.set_keys else {}
                continue
            kept = [
                {key: value for key, value in keys.items() if f"{place}.{key}" in self.set_keys}
                for place, keys in places(name, content).items()
            ]
            if isinstance(content, list):  # its length is set
                tree[name] = kept
            elif kept[0]:
                tree[name] = kept[0]
        return _to_yaml(tree)

    def __getattr__(self, name: str) -> Any:
        if name in schema.ORDER and "sections" in vars(self):
            raise AttributeError(f"{name} is no section of TASK {self.TASK}. {one_of('', self.sections)}")
        raise AttributeError(f"a config has no section or key {name}: {one_of(name, (*schema.TOP, *schema.ORDER))}")


def _values(content: Any) -> Any:
    return content.values() if isinstance(content, PartConfig | PartList) else settings_values(content)


def _to_yaml(values: dict[str, Any]) -> str:
    return CfgNode(annotations.as_yaml(values)).dump(sort_keys=False, default_flow_style=None)
