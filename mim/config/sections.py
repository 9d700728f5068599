"""One section of a file, with its overrides, parsed against the keys of its settings and of the parts that it names."""

import logging
from typing import Any

from mim.config import annotations, schema
from mim.config.parts import named_by_place
from mim.errors import ConfigError
from mim.io import migrate
from mim.io.formatting import printable, short_repr
from mim.io.sections import LISTS, is_list, places
from mim.io.yaml import read_texts
from mim.registry import Key, one_of

LOG = logging.getLogger("mim")

Raw = dict[str, Any]


def with_whole_sections(raw: Raw, pairs: dict[str, Any]) -> tuple[Raw, dict[str, Any]]:
    """The file and the overrides, where an override that gives all of a section has replaced the file's.

    Only a section that may be a list has such overrides: TARGET "[{name: pixels}, {name: hog}]". A list of one part is
    that part.
    """
    raw, pairs = dict(raw), dict(pairs)
    for section in LISTS:
        value = _read_whole(section, pairs[section]) if section in pairs else None
        if value is not None:
            raw[section] = value
            del pairs[section]
        if isinstance(raw.get(section), list) and len(raw[section]) == 1:
            raw[section] = raw[section][0]
    return raw, pairs


def parse_section(task: str, section: str, content: Any, pairs: dict[str, Any], warn: migrate.Warn) -> Any:
    """The values of a section by key; those of a section that is a list as a list."""
    parsed = [_parse_keys(task, place, keys, pairs, warn) for place, keys in places(section, content).items()]
    return parsed if is_list(section, content) else parsed[0]


def parse_value(key: str, kind: Key, raw: Raw, raw_key: str, pairs: dict[str, Any]) -> Any:
    """The value of a key: from the overrides, else the file, else its default."""
    if key in pairs:
        value = annotations.from_command_line(key, pairs[key], kind.annotation)
        return annotations.parse(key, value, kind.annotation)
    return annotations.parse(key, raw[raw_key], kind.annotation) if raw_key in raw else kind.default


def _read_whole(section: str, value: Any) -> Any:
    """The content of a section from an override: a list, or the keys of one part; None for another value."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = read_texts(value)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{section} is {short_repr(value)}: it is not as YAML writes it ({reason})") from error
    return value if isinstance(value, list | dict) else None


def _parse_keys(task: str, place: str, raw: Raw, pairs: dict[str, Any], warn: migrate.Warn) -> Raw:
    """The values of one place, such as TRAIN or TARGET.1."""
    section, values, name = place.partition(".")[0], {}, ""
    if section in schema.FAMILIES:
        default = schema.FAMILIES[section].default
        request = pairs.get(f"{place}.name", raw.get("name", default))
        values["name"] = name = annotations.parse(f"{place}.name", request, str)
        raw = _without_keys_of_another_part(place, raw, name, str(raw.get("name", default)))
    with named_by_place(place):
        keys = schema.section_keys(task, section, name)
    raw = migrate.drop(section, name, raw, keys, warn)
    allowed = [*keys, *values]
    for key in [*raw, *(key.removeprefix(f"{place}.") for key in pairs if key.startswith(f"{place}."))]:
        if key not in allowed:
            from mim.config.keys import owners  # only here, as this module also runs by `python -m`

            of, topic = (f" of {name}", f"{section}.{name}") if name else ("", section)
            hint = f"it is a key of {', '.join(others)}. " if (others := owners(section, key)) else ""
            raise ConfigError(
                f"unknown key {printable(f'{place}.{key}')}{of}: {hint}{one_of(key, allowed)}. "
                f"`python -m mim train --keys {topic}` explains them"
            )
    return values | {key: parse_value(f"{place}.{key}", kind, raw, key, pairs) for key, kind in keys.items()}


def _without_keys_of_another_part(place: str, raw: Raw, name: str, name_in_file: str) -> Raw:
    """Where the command line names another part than the file, the file's keys for that one have no effect."""
    if name_in_file == name:
        return raw
    section = place.partition(".")[0]
    try:
        theirs, ours = schema.part_keys(section, name_in_file), schema.part_keys(section, name)
    except ValueError:  # one of the two does not exist
        return raw
    foreign = {
        key
        for key in theirs
        if key in raw
        and (key not in ours or (_is_allowed(raw[key], theirs[key]) and not _is_allowed(raw[key], ours[key])))
    }
    unknown = sorted(key for key in foreign if key not in ours)
    facts = [
        f"{place}.{key} of the file has no effect: {short_repr(raw[key])} is a value" for key in foreign - {*unknown}
    ]
    if unknown:
        keys, one = f"{place}.{', '.join(unknown)} of the file", len(unknown) == 1
        facts.append(f"{keys} {'has no effect: it is a key' if one else 'have no effect: they are keys'}")
    for fact in facts:
        LOG.warning("%s of %s, and %s.name is now %s", fact, name_in_file, place, name)
    return {key: value for key, value in raw.items() if key not in foreign}


def _is_allowed(value: Any, kind: Key) -> bool:
    try:
        annotations.parse("", value, kind.annotation)
    except ValueError:
        return False
    return True
