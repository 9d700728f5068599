"""Sections of a config as plain data: where each key stands, also in a section that is a list of mappings."""

from collections.abc import Mapping
from typing import Any

LISTS = ("AUGMENTATION", "TARGET", "LOSS", "READOUT")  # sections that may be lists, of a mapping for each part


def is_list(section: str, content: Any) -> bool:
    """Whether the content of a section is a list of mappings."""
    if section not in LISTS or not isinstance(content, list | tuple):
        return False
    return bool(content) and all(isinstance(each, Mapping) for each in content)


def places(section: str, content: Any) -> dict[str, Any]:
    """The mappings of a section by their place: `TRAIN`, or `TARGET.0` and `TARGET.1` of a list. A value is itself."""
    if is_list(section, content):
        return {f"{section}.{index}": each for index, each in enumerate(content)}
    return {section: content}


def all_places(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The mappings of all sections, and the values at the top, by their place."""
    return {place: keys for name, content in sections.items() for place, keys in places(name, content).items()}


def flatten(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Every key with its place, as in `SEED`, `TRAIN.epochs` or `TARGET.1.weight`, with its value."""
    flat: dict[str, Any] = {}
    for place, keys in all_places(sections).items():
        flat |= {f"{place}.{key}": value for key, value in keys.items()} if isinstance(keys, Mapping) else {place: keys}
    return flat
