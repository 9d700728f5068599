"""Loading: a YAML file and `KEY VALUE` pairs become one complete, checked and frozen Config. Nothing here needs torch.

Two passes: first the names of the parts are read, then the file is parsed against the keys of those very parts.
Every scalar is taken as text and parsed by its key's annotation, from the file and the command line alike.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim.config import annotations, checks, inherit, plugins, schema
from mim.config.annotations import as_yaml
from mim.config.inherit import FindFacts
from mim.config.recipes import find_file
from mim.config.sections import parse_section, parse_value, with_whole_sections
from mim.config.tree import Config
from mim.config.words import pairs_of_words
from mim.errors import ConfigError
from mim.io import migrate
from mim.io.formatting import printable, short_repr
from mim.io.limits import CONFIG_BYTES
from mim.io.sections import flatten
from mim.io.yaml import read_texts

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
        checks.check_recipe(cfg.RECIPE)  # not where the config of a run is read, whose recipe may be gone
    except ValueError as error:
        raise named(error, path, overrides, lambda: checks.check_recipe(parse_config(text).RECIPE)) from error
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
        f"{key}: {as_yaml(theirs.get(key, 'absent'))} there, {as_yaml(ours.get(key, 'absent'))} here"
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    ]


def _resolve(raw: Raw, pairs: dict[str, Any], warn: migrate.Warn, find_facts: FindFacts | None = None) -> Config:
    raw, pairs = with_whole_sections(migrate.rename(raw, warn), migrate.rename_pairs(pairs, warn))
    task = parse_value("TASK", schema.TOP["TASK"], raw, "TASK", pairs)
    checks.check_sections(raw, pairs, task)
    for module in parse_value("PLUGINS", schema.TOP["PLUGINS"], raw, "PLUGINS", pairs):
        plugins.import_named(module)
    set_keys, overridden = frozenset([*flatten(raw), *pairs]), frozenset(pairs)
    filled: list[str] = []
    init = parse_section(task, "INIT", raw.get("INIT", {}), pairs, warn)
    facts = find_facts(init["checkpoint"]) if find_facts is not None else None
    if facts is not None:
        raw, pairs, filled = inherit.fill(raw, pairs, facts, init)
    values = {key: parse_value(key, kind, raw, key, pairs) for key, kind in schema.TOP.items()}
    for section in schema.sections(task):
        values[section] = parse_section(task, section, raw.get(section, {}), pairs, warn)
    checks.check_limits(values)
    checks.check_lengths(values)
    checks.check_init(values)
    if values["SEED"] < 0:
        raise ConfigError(f"SEED is {values['SEED']}: it must be at least 0")
    if facts is None:
        return Config.of(values, set_keys)
    values["PLUGINS"] = tuple(dict.fromkeys([*values["PLUGINS"], *facts.plugins]))
    cfg = inherit.resized(Config.of(values, set_keys - set(filled)), facts, set_keys - set(filled))
    inherit.check(cfg, facts, overridden)
    return replace(cfg, notes=tuple(inherit.lines(cfg, facts, filled)))


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
