"""Loading: a YAML file and `KEY VALUE` pairs become one complete, checked and frozen Config. Nothing here needs torch.

Two passes: first the names of the parts are read, then the file is parsed against the keys of those very parts.
Every scalar is taken as text and parsed by its key's annotation, from the file and the command line alike.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim.config import annotations, inherit, migrate, plugins, schema
from mim.config.inherit import FindFacts
from mim.config.recipes import find_file, recipe_names
from mim.config.tree import Config
from mim.config.words import pairs_of_words
from mim.errors import ConfigError
from mim.io.formatting import printable, short_repr
from mim.io.limits import BLOCKS, CONFIG_BYTES, INTEGER, LARGEST
from mim.io.yaml import read_texts
from mim.registry import Key, one_of

LOG = logging.getLogger("mim")

Raw = dict[str, Any]
Overrides = Mapping[str, Any] | Sequence[Any]  # {"TRAIN.epochs": 2}, [("TRAIN.epochs", 2)] or ["TRAIN.epochs", "2"]


def load_config(path: str | Path, overrides: Overrides = (), find_facts: FindFacts | None = None) -> Config:
    """The complete config of a file, or of a shipped recipe by name, and overrides.

    find_facts: what is known of the model of INIT.checkpoint; None where nothing is to be taken from it.

    Whether the parts fit each other is checked by mim.build.load_config, which needs torch. Raises ConfigError for an
    unknown or repeated key, a value of the wrong type or range, and a RECIPE that does not exist.
    """
    path = find_file(path)
    text = _text_of(path)
    try:
        cfg = _resolve(read_mapping(text), read_pairs(overrides), LOG.warning, find_facts)
        _check_recipe(cfg.RECIPE)  # not where the config of a run is read, whose recipe may be gone
    except ValueError as error:
        raise named(error, path, overrides, lambda: _check_recipe(parse_config(text).RECIPE)) from error
    return cfg


def named(error: ValueError, path: Path, overrides: Overrides, read_file: Callable[[], object]) -> ConfigError:
    """The error; with the path of the file in front where reading the file without overrides fails likewise."""
    if overrides:
        try:
            read_file()
            return ConfigError(str(error))
        except ValueError as file_error:
            if str(file_error) != str(error):
                return ConfigError(str(error))
    return ConfigError(f"{printable(str(path))}: {error}")


def parse_config(text: str, overrides: Overrides = (), find_facts: FindFacts | None = None) -> Config:
    """As load_config, of the text of a config file, such as a checkpoint holds; keys of 0.1.0 need no warning here."""
    return _parse(lambda: read_mapping(text), overrides, find_facts)


def change_config(cfg: Config, overrides: Overrides, find_facts: FindFacts | None = None) -> Config:
    """The config with overrides; what it took from a model is taken anew, if it still has INIT.checkpoint."""
    return _parse(lambda: read_mapping(cfg.set_keys_yaml()), overrides, find_facts)


def _parse(read: Callable[[], Raw], overrides: Overrides, find_facts: FindFacts | None) -> Config:
    try:
        return _resolve(read(), read_pairs(overrides), LOG.debug, find_facts)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_mapping(text: str) -> Raw:
    """A YAML mapping with every scalar as text. Raises ConfigError where it is none, or a key stands twice."""
    try:
        raw = read_texts(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"it must be a mapping of sections, not {type(raw).__name__}")
    return raw


def read_pairs(overrides: Overrides) -> dict[str, Any]:
    """Overrides by key, each value a text or lists of texts.

    Raises ConfigError for a key without a value, and for one that stands twice.
    """
    if isinstance(overrides, Mapping):
        entries = list(overrides.items())
    elif overrides and not isinstance(overrides[0], str):
        entries = [tuple(entry) if isinstance(entry, list | tuple) else () for entry in overrides]
        if any(len(entry) != 2 for entry in entries):
            raise ConfigError(f"overrides {short_repr(overrides)}: each must be a pair of a key and a value")
    else:
        entries = pairs_of_words(overrides)
    pairs: dict[str, Any] = {}
    for key, value in entries:
        if not isinstance(key, str):
            raise ConfigError(f"override {short_repr(key)}: a key is a text, such as TRAIN.epochs")
        if key in pairs:
            raise ConfigError(
                f"{printable(key)} is given twice: {printable(str(pairs[key]))} and {printable(str(value))}"
            )
        pairs[key] = annotations.as_text(value)
    return pairs


def differing(cfg: Config, other: Config) -> list[str]:
    """Keys in which two configs differ, each with both values."""
    ours, theirs = cfg.flat(), other.flat()
    return [
        f"{key}: {_shown(theirs.get(key, 'absent'))} there, {_shown(ours.get(key, 'absent'))} here"
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    ]


def _resolve(raw: Raw, pairs: dict[str, Any], warn: migrate.Warn, find_facts: FindFacts | None = None) -> Config:
    raw, pairs = migrate.rename(raw, warn), migrate.rename_pairs(pairs, warn)
    task = _value("TASK", schema.TOP["TASK"], raw, "TASK", pairs)
    _check_sections(raw, pairs, task)
    for module in _value("PLUGINS", schema.TOP["PLUGINS"], raw, "PLUGINS", pairs):
        plugins.import_named(module)
    set_keys, overridden = _set_keys(raw, pairs), frozenset(pairs)
    filled: list[str] = []
    init = _section(task, "INIT", raw.get("INIT", {}), pairs, warn)
    facts = find_facts(init["checkpoint"]) if find_facts is not None else None
    if facts is not None:
        raw, pairs, filled = inherit.fill(raw, pairs, facts, init)
    values = {key: _value(key, kind, raw, key, pairs) for key, kind in schema.TOP.items()}
    for section in schema.sections(task):
        values[section] = _section(task, section, raw.get(section, {}), pairs, warn)
    _check_limits(values)
    _check_init(values)
    if values["SEED"] < 0:
        raise ConfigError(f"SEED is {values['SEED']}: it must be at least 0")
    if facts is None:
        return Config.of(values, set_keys)
    values["PLUGINS"] = tuple(dict.fromkeys([*values["PLUGINS"], *facts.plugins]))
    cfg = inherit.resized(Config.of(values, set_keys - set(filled)), facts, set_keys - set(filled))
    inherit.check(cfg, facts, overridden)
    return replace(cfg, notes=tuple(inherit.lines(cfg, facts, filled)))


def _set_keys(raw: Raw, pairs: Iterable[str]) -> frozenset[str]:
    """The keys that a file or the overrides set."""
    keys = [f"{name}.{key}" for name, content in raw.items() if isinstance(content, dict) for key in content]
    return frozenset([*keys, *(name for name, content in raw.items() if not isinstance(content, dict)), *pairs])


def _section(task: str, section: str, raw: Raw, pairs: dict[str, Any], warn: migrate.Warn) -> dict[str, Any]:
    """The values of one section, parsed against the keys of its settings and of the part that it names."""
    values, name = {}, ""
    if section in schema.FAMILIES:
        default = schema.FAMILIES[section].default
        request = pairs.get(f"{section}.name", raw.get("name", default))
        values["name"] = name = annotations.parse(f"{section}.name", request, str)
        raw = _without_keys_of_another_part(section, raw, name, str(raw.get("name", default)))
    keys = schema.section_keys(task, section, name)
    raw = migrate.drop(section, name, raw, keys, warn)
    allowed = [*keys, *values]
    for key in [*raw, *(key.partition(".")[2] for key in pairs if key.startswith(section + "."))]:
        if key not in allowed:
            from mim.config.keys import owners  # only here, as this module also runs by `python -m`

            of, topic = (f" of {name}", f"{section}.{name}") if name else ("", section)
            hint = f"it is a key of {', '.join(others)}. " if (others := owners(section, key)) else ""
            raise ConfigError(
                f"unknown key {printable(f'{section}.{key}')}{of}: {hint}{one_of(key, allowed)}. "
                f"`python -m mim train --keys {topic}` explains them"
            )
    return values | {key: _value(f"{section}.{key}", kind, raw, key, pairs) for key, kind in keys.items()}


def _without_keys_of_another_part(section: str, raw: Raw, name: str, name_in_file: str) -> Raw:
    """Where the command line names another part than the file, the file's keys for that one have no effect."""
    if name_in_file == name:
        return raw
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
        f"{section}.{key} of the file has no effect: {short_repr(raw[key])} is a value" for key in foreign - {*unknown}
    ]
    if unknown:
        keys, one = f"{section}.{', '.join(unknown)} of the file", len(unknown) == 1
        facts.append(f"{keys} {'has no effect: it is a key' if one else 'have no effect: they are keys'}")
    for fact in facts:
        LOG.warning("%s of %s, and %s.name is now %s", fact, name_in_file, section, name)
    return {key: value for key, value in raw.items() if key not in foreign}


def _is_allowed(value: Any, kind: Key) -> bool:
    try:
        annotations.parse("", value, kind.annotation)
    except ValueError:
        return False
    return True


def _check_sections(raw: Raw, pairs: dict[str, str], task: str) -> None:
    sections = schema.sections(task)
    known = [*schema.TOP, *sections]
    for section in [*raw, *(key.partition(".")[0] for key in pairs)]:
        if section in schema.ORDER and section not in sections:
            raise ConfigError(f"{section} is no section of TASK {task}. {one_of('', known)}")
        if section not in known:
            raise ConfigError(f"unknown section or key {printable(section)}: {one_of(section, known)}")
    for section in sections:
        if not isinstance(raw.get(section, {}), dict):
            raise ConfigError(f"{section} is {short_repr(raw[section])}: it must be a mapping of keys")
        if section in pairs:
            raise ConfigError(f"{section} is a section: name one of its keys, as in {section}.KEY VALUE")
    for key in pairs:
        if key.partition(".")[0] in schema.TOP and "." in key:
            raise ConfigError(f"unknown key {printable(key)}: {key.partition('.')[0]} has no keys below it")


def _check_init(values: Raw) -> None:
    """Raises ConfigError where INIT.take or INIT.keep names a key that a section does not have."""
    for name in ("take", "keep"):
        for key in values["INIT"][name]:
            section, _, inner = key.partition(".")
            if inner and section in values and inner not in values[section]:
                part = f"{section}.name {values[section]['name']} has no such key"
                raise ConfigError(f"INIT.{name} names {printable(key)}: {part}. {one_of(inner, list(values[section]))}")


def _check_limits(values: Raw) -> None:
    """Raises ValueError for a number with which not even the shapes of a model could be made."""
    for section, content in values.items():
        for key, value in (content if isinstance(content, dict) else {section: content}).items():
            name = f"{section}.{key}" if isinstance(content, dict) else key
            most = LARGEST.get(key, INTEGER)
            items = value if isinstance(value, tuple) else (value,)
            numbers = [each for each in items if isinstance(each, int | float)]
            if any(abs(each) > most and (isinstance(each, int) or key in LARGEST) for each in numbers):
                raise ValueError(f"{name} is {short_repr(_shown(value))}: it must be at most {most:,}")
            if key == "depths" and sum(numbers) > BLOCKS:
                raise ValueError(f"{name} is {short_repr(_shown(value))}: at most {BLOCKS:,} blocks in all")


def _check_recipe(name: str) -> None:
    names = recipe_names()
    if name and names and name not in names:
        raise ConfigError(
            f"RECIPE is {short_repr(name)}: it names the recipe that this file follows. {one_of(name, names)}"
        )


def _text_of(file: Path) -> str:
    """Raises ConfigError where it is no file of UTF-8 text, or too large for a config."""
    called = f"config {printable(str(file))}"
    try:
        if not file.is_file():  # nor a pipe or a device, which may have no end
            raise ConfigError(f"{called} {'is no file' if file.exists() else 'does not exist'}")
        with file.open("rb") as opened:
            content = opened.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{called} cannot be read: {error.strerror}") from error
    if len(content) > CONFIG_BYTES:
        raise ConfigError(f"{called} has more than {CONFIG_BYTES:,} bytes: it is none")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{called} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from error


def _value(key: str, kind: Key, raw: Raw, raw_key: str, pairs: dict[str, Any]) -> Any:
    """The value of a key: from the overrides, else the file, else its default."""
    if key in pairs:
        value = annotations.from_command_line(key, pairs[key], kind.annotation)
        return annotations.parse(key, value, kind.annotation)
    return annotations.parse(key, raw[raw_key], kind.annotation) if raw_key in raw else kind.default


def _shown(value: Any) -> Any:
    """A value as a config holds it."""
    return list(value) if isinstance(value, tuple) else value
