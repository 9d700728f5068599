"""Config: one complete, checked and frozen tree of settings, with its parts by name."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yacs.config import CfgNode

from mim.config import annotations, schema
from mim.data.settings import LabelSettings
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings
from mim.readouts.settings import FreezeSettings
from mim.registry import Key, one_of
from mim.tasks.settings import InitSettings


@dataclass(frozen=True)
class PartConfig:
    """A section that names a part: each key is an attribute, as in `cfg.ENCODER.width`."""

    section: str  # as in ENCODER
    name: str  # the part's name
    arguments: Mapping[str, Any]  # the part's own keys
    shared: Any = None  # the settings that all parts of the section share, as DataSettings; None where there are none

    def build(self, *context: Any) -> Any:
        """The part, made for its context: what its constructor takes before the keys."""
        return schema.family(self.section).named(self.name)(*context, **self.arguments)

    def values(self) -> dict[str, Any]:
        """Every key of the section with its value."""
        return {"name": self.name, **(_values(self.shared) if self.shared is not None else {}), **self.arguments}

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key in {each.name for each in dataclasses.fields(PartConfig)}:
            raise AttributeError(key)  # while a copy is being made
        values = self.values()
        if key not in values:
            raise AttributeError(f"{self.section}.name {self.name} has no key {key}: {one_of(key, values)}")
        return values[key]


@dataclass(frozen=True)
class Config:
    """A complete config: TASK, SEED, RECIPE, PLUGINS and the sections of the task, each an attribute.

    `cfg.TRAIN` is the TrainSettings of the run, `cfg.ENCODER` a PartConfig. Raises AttributeError for a section that
    the task does not have.
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
    MASKER: PartConfig = field(init=False, repr=False, compare=False)
    ENCODER: PartConfig = field(init=False, repr=False, compare=False)
    HEAD: PartConfig = field(init=False, repr=False, compare=False)
    TARGET: PartConfig = field(init=False, repr=False, compare=False)
    LOSS: PartConfig = field(init=False, repr=False, compare=False)
    CLASSIFIER: Any = field(init=False, repr=False, compare=False)
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
        sections = {name: _section(task, name, values[name]) for name in schema.sections(task)}
        return cls(**top, sections=sections, set_keys=set_keys)

    def values(self) -> dict[str, Any]:
        """Every key with its value, those of a section as a dict."""
        top = {key: getattr(self, key) for key in schema.TOP}
        return {**top, **{name: _values(content) for name, content in self.sections.items()}}

    def flat(self) -> dict[str, Any]:
        """Every key with its section, as in TRAIN.epochs, with its value."""
        flat: dict[str, Any] = {}
        for key, value in self.values().items():
            flat |= (
                {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
            )
        return flat

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """This config with other values: `cfg.replace({"DATA.mean": mean, "DATA.std": std})`.

        Raises ValueError for an unknown key, and for a value of the wrong type or out of range.
        """
        tree = self.values()
        for key, value in values.items():
            section, _, inner = key.rpartition(".")
            keys = self._keys(section)
            if inner not in keys:
                raise ValueError(f"unknown key {key}: {one_of(key, self.flat())}")
            tree.get(section, tree)[inner] = annotations.parse(key, annotations.as_text(value), keys[inner].annotation)
        set_keys = None if self.set_keys is None else self.set_keys | values.keys()
        return dataclasses.replace(Config.of(tree, set_keys), notes=self.notes)

    def _keys(self, section: str) -> dict[str, Key]:
        """The keys of a section; for an empty text, those at the top."""
        content = self.sections.get(section)
        if content is None:
            return {} if section else schema.TOP
        return schema.section_keys(self.TASK, section, content.name if isinstance(content, PartConfig) else "")

    def to_yaml(self) -> str:
        """The config as YAML, which load_config and yacs read back to the same values."""
        return _to_yaml(self.values())

    def set_keys_yaml(self) -> str:
        """The keys that were set, as YAML; with the defaults, and what INIT.checkpoint knows, they are this config."""
        if self.set_keys is None:
            return self.to_yaml()
        tree: dict[str, Any] = {}
        for name, content in self.values().items():
            if not isinstance(content, dict):
                tree |= {name: content} if name in self.set_keys else {}
            elif keys := {key: value for key, value in content.items() if f"{name}.{key}" in self.set_keys}:
                tree[name] = keys
        return _to_yaml(tree)

    def __getattr__(self, name: str) -> Any:
        if name in schema.ORDER and "sections" in vars(self):
            raise AttributeError(f"{name} is no section of TASK {self.TASK}. {one_of('', self.sections)}")
        raise AttributeError(f"a config has no section or key {name}: {one_of(name, (*schema.TOP, *schema.ORDER))}")


def _section(task: str, section: str, values: Mapping[str, Any]) -> Any:
    """The settings of a section, or its part."""
    cls = schema.SETTINGS[task].get(section)
    names = {each.name for each in dataclasses.fields(cls)} if cls else set()
    settings = cls(**{key: values[key] for key in names}) if cls else None
    if section not in schema.FAMILIES:
        return settings
    own = {key: value for key, value in values.items() if key not in names and key != "name"}
    return PartConfig(section, values["name"], own, settings)


def _values(content: Any) -> dict[str, Any]:
    if isinstance(content, PartConfig):
        return content.values()
    return {each.name: getattr(content, each.name) for each in dataclasses.fields(content)}


def _to_yaml(values: dict[str, Any]) -> str:
    return CfgNode(_plain(values)).dump(sort_keys=False, default_flow_style=None)


def _plain(value: Any) -> Any:
    """Tuples as lists, which yacs writes without a tag."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
