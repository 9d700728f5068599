"""Checks of a config's sections as a whole: which there are, what they may hold, and where overrides may point."""

from typing import Any

from mim.config import schema
from mim.config.annotations import as_yaml
from mim.config.recipes import recipe_names
from mim.errors import ConfigError
from mim.io.formatting import printable, short_repr
from mim.io.limits import BLOCKS, INTEGER, LARGEST
from mim.io.sections import LISTS, all_places, flatten, is_list, places
from mim.registry import one_of

Raw = dict[str, Any]


def check_sections(raw: Raw, pairs: Raw, task: str) -> None:
    """Raises ConfigError for an unknown section, for one that is no mapping, and for overrides that name no key."""
    sections = schema.sections(task)
    known = [*schema.TOP, *sections]
    for section in [*raw, *(key.partition(".")[0] for key in pairs)]:
        if section in schema.ORDER and section not in sections:
            raise ConfigError(f"{section} is no section of TASK {task}. {one_of('', known)}")
        if section not in known:
            raise ConfigError(f"unknown section or key {printable(section)}: {one_of(section, known)}")
    for section in sections:
        whole = f", or all of it, as in {_example(section)}" if section in LISTS else ""
        if section in pairs:
            raise ConfigError(f"{section} is a section: name one of its keys, as in {section}.KEY VALUE{whole}")
        _check_content(section, raw.get(section, {}))
    for key in pairs:
        section, _, inner = key.partition(".")
        if section in schema.TOP and inner:
            raise ConfigError(f"unknown key {printable(key)}: {section} has no keys below it")
        if section in LISTS:
            _check_place(key, places(section, raw.get(section, {})))


def _check_content(section: str, content: Any) -> None:
    if isinstance(content, dict) or is_list(section, content):
        return
    if section in LISTS and isinstance(content, list):
        for index, each in enumerate(content):
            if not isinstance(each, dict):
                raise ConfigError(
                    f"{section}.{index} is {short_repr(each)}: it must be a mapping of keys, as in {_example(section)}"
                )
        raise ConfigError(f"{section} is an empty list: name at least one part, as in {_example(section)}")
    more = ", or a list of them" if section in LISTS else ""
    raise ConfigError(f"{section} is {short_repr(content)}: it must be a mapping of keys{more}")


def _check_place(key: str, by_place: Raw) -> None:
    """Raises ConfigError for an override that names no part of a list, or one of a section that is no list."""
    section, _, rest = key.partition(".")
    index, _, inner = rest.partition(".")
    is_single = section in by_place
    if is_single and index.isdecimal():
        raise ConfigError(
            f"unknown key {printable(key)}: {section} is no list here. Write {_ways(key, by_place)}, or give all of "
            f"it, as in {_example(section)}"
        )
    if not is_single and f"{section}.{index}" not in by_place:
        ways = _ways(key, by_place)
        raise ConfigError(f"unknown key {printable(key)}: {section} is a list of {len(by_place)} here. Write {ways}")
    if not is_single and not inner:
        raise ConfigError(f"{key} is one part of a list: name one of its keys, as in {key}.KEY VALUE")


def _ways(key: str, by_place: Raw) -> str:
    """How a key is written at the places that there are."""
    index, _, inner = key.partition(".")[2].partition(".")
    inner = inner or ("KEY" if index.isdecimal() else index)
    return " or ".join(f"{place}.{printable(inner)}" for place in by_place)


def _example(section: str) -> str:
    """How an override gives a list of parts."""
    return f'{section} "[{{name: {schema.FAMILIES[section].default}}}, {{name: ...}}]"'


def check_lengths(values: Raw) -> None:
    """Raises ConfigError where a list of losses does not have one for each target."""
    if is_list("LOSS", values.get("LOSS")):
        losses, targets = len(values["LOSS"]), len(places("TARGET", values["TARGET"]))
        if losses != targets:
            raise ConfigError(
                f"LOSS is a list of {losses}, and TARGET has {targets}: give one loss for each target, or LOSS as a "
                "mapping, which is the loss of every target"
            )


def check_init(values: Raw) -> None:
    """Raises ConfigError where INIT.take or INIT.keep names a key that a section does not have."""
    by_place = all_places(values)
    for name in ("take", "keep"):
        for key in values["INIT"][name]:
            place, _, inner = key.rpartition(".")
            section = key.partition(".")[0]
            if not inner or not place or section not in values:
                continue
            if place not in by_place:
                ways = _ways(key, places(section, values[section]))
                raise ConfigError(f"INIT.{name} names {printable(key)}, which is not there: write {ways}")
            if inner not in by_place[place]:
                part = f"{place}.name {by_place[place]['name']} has no such key"
                raise ConfigError(f"INIT.{name} names {printable(key)}: {part}. {one_of(inner, list(by_place[place]))}")


def check_limits(values: Raw) -> None:
    """Raises ValueError for a number with which not even the shapes of a model could be made."""
    for name, value in flatten(values).items():
        key = name.rpartition(".")[2]
        most = LARGEST.get(key, INTEGER)
        items = value if isinstance(value, tuple) else (value,)
        numbers = [each for each in items if isinstance(each, int | float)]
        if any(abs(each) > most and (isinstance(each, int) or key in LARGEST) for each in numbers):
            raise ValueError(f"{name} is {short_repr(as_yaml(value))}: it must be at most {most:,}")
        if key == "depths" and sum(numbers) > BLOCKS:
            raise ValueError(f"{name} is {short_repr(as_yaml(value))}: at most {BLOCKS:,} blocks in all")


def check_recipe(name: str) -> None:
    """Raises ConfigError where RECIPE names no shipped recipe."""
    names = recipe_names()
    if name and names and name not in names:
        raise ConfigError(
            f"RECIPE is {short_repr(name)}: it names the recipe that this file follows. {one_of(name, names)}"
        )
