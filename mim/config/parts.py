"""The parts that a section of a config names: one, or several where the section is a list."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mim.config import schema, trackers
from mim.registry import one_of


@contextmanager
def named_by_place(place: str) -> Iterator[None]:
    """Errors about the keys of one part of several, such as TARGET.weight, name those of its place: TARGET.1.weight."""
    section, _, index = place.partition(".")
    try:
        yield
    except ValueError as error:
        if not index:
            raise
        raise type(error)(re.sub(rf"\b{section}\.(?!\d)", f"{place}.", str(error))) from error


@dataclass(frozen=True)
class PartConfig:
    """A section that names a part: each key is an attribute, as in `cfg.ENCODER.width`."""

    section: str  # as in ENCODER
    name: str  # the part's name
    arguments: Mapping[str, Any]  # the part's own keys
    shared: Any = None  # the settings that all parts of the section share, as DataSettings; None where there are none
    place: str = ""  # how its keys begin in messages: the section, or TARGET.1 for one part of several

    def build(self, *context: Any) -> Any:
        """The part, made for its context: what its constructor takes before the keys."""
        with named_by_place(self.place):
            return schema.family(self.section).named(self.name)(*context, **self.arguments)

    def values(self) -> dict[str, Any]:
        """Every key of the section with its value."""
        return {"name": self.name, **(settings_values(self.shared) if self.shared else {}), **self.arguments}

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key in {each.name for each in dataclasses.fields(PartConfig)}:
            raise AttributeError(key)  # while a copy is being made
        values = self.values()
        if key not in values:
            raise AttributeError(f"{self.section}.name {self.name} has no key {key}: {one_of(key, values)}")
        return values[key]


@dataclass(frozen=True)
class PartList:
    """A section that is a list of parts: `cfg.TARGET.parts[1].weight`. `cfg.parts` gives those of any section."""

    section: str
    parts: tuple[PartConfig, ...]

    def values(self) -> list[dict[str, Any]]:
        """Every key with its value, for each part."""
        return [part.values() for part in self.parts]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key in ("section", "parts"):
            raise AttributeError(key)  # while a copy is being made
        raise AttributeError(
            f"{self.section} is a list of {len(self.parts)} parts, which has no key {key}: "
            f'see cfg.parts("{self.section}")'
        )


def section_content(task: str, section: str, values: Any) -> Any:
    """The settings of a section, its part, or its parts. Raises ValueError for a value that is out of range."""
    if isinstance(values, Mapping):
        return _content(task, section, section, values)
    parts = (_content(task, section, f"{section}.{index}", each) for index, each in enumerate(values))
    return PartList(section, tuple(parts))


def settings_values(settings: Any) -> dict[str, Any]:
    """The keys of a settings dataclass with their values."""
    return {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}


def _content(task: str, section: str, place: str, values: Mapping[str, Any]) -> Any:
    cls = schema.SETTINGS[task].get(section)
    names = {each.name for each in dataclasses.fields(cls)} if cls else set()
    if section == "LOG":
        values = {**values, "trackers": trackers.complete(values["trackers"])}
    with named_by_place(place):
        settings = cls(**{key: values[key] for key in names}) if cls else None
    if section not in schema.FAMILIES:
        return settings
    own = {key: value for key, value in values.items() if key not in names and key != "name"}
    return PartConfig(section, values["name"], own, settings, place)
