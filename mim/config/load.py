"""Configs: a YAML file and `KEY VALUE` pairs become one complete, checked and frozen yacs node.

Two passes: first the names of the parts are read, then the file is parsed against the keys of those very parts.
Every scalar is taken as text and parsed by its key's annotation, from the file and the command line alike.
"""

import importlib
import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from mim import build
from mim.config import annotations, schema
from mim.config.recipes import recipe_names
from mim.errors import ConfigError
from mim.interop import Weights, metadata
from mim.io.formatting import plain, shown
from mim.io.limits import CONFIG_BYTES
from mim.io.yaml import read_texts
from mim.registry import Key, keys_of, one_of

LOG = logging.getLogger("mim")

TOP: dict[str, Key] = {
    "TASK": Key(schema.TaskName, "pretrain"),
    "SEED": Key(int, 0),
    "RECIPE": Key(str, ""),
    "PLUGINS": Key(tuple[str, ...], ()),
}
REASON = 500  # characters of what a plugin's error says
Raw = dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The complete config of a file and `KEY VALUE` pairs, frozen: `load_config("a.yaml", ["TRAIN.epochs", "2"])`.

    Raises ConfigError for an unknown or repeated key, a value of the wrong type or range, parts that do not fit each
    other, and a RECIPE that is none.
    """
    text = _text_of(Path(path))
    try:
        cfg = parse_config(text, overrides)
        _check_recipe(cfg.RECIPE)  # not where a run is read again, whose recipe may be gone
    except ValueError as error:
        raise ConfigError(f"{plain(str(path))}: {error}") from error
    return cfg


def parse_config(text: str, overrides: Sequence[str] = ()) -> CfgNode:
    """As load_config, of the text of a file."""
    try:
        return _resolve(read_mapping(text), read_pairs(overrides))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def describe(weights: Weights, overrides: Sequence[str]) -> CfgNode:
    """The complete config of a file's weights. Raises ValueError for keys that neither it nor the pairs tell."""
    asked = [key for key in weights.untold if key not in overrides[::2]]
    if asked:
        raise ValueError(
            f"{weights.source} does not tell {' and '.join(asked)}: name each, as in ENCODER.heads 12 or "
            'DATA.image_size "[224, 224]"'
        )
    try:
        return parse_config(metadata.as_yaml(weights.sections), overrides)
    except (ConfigError, yaml.YAMLError) as error:
        raise ConfigError(f"{weights.source}, with what was asked for: {error}") from error


def read_mapping(text: str) -> Raw:
    """A YAML mapping with every scalar as text. Raises ConfigError where it is none, or a key stands twice."""
    try:
        raw = read_texts(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"it must be a mapping of sections, not {type(raw).__name__}")
    return raw


def read_pairs(overrides: Sequence[str]) -> dict[str, str]:
    """KEY VALUE pairs of a command line. Raises ConfigError for a key without a value, or one that is given twice."""
    for word in overrides[::2]:
        key, equals, value = word.partition("=")
        if equals:
            raise ConfigError(f"{plain(word)}: a key and its value are two words: {plain(key)} {plain(value)}")
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs, KEY VALUE: {shown(overrides[-1])} has no value")
    pairs: dict[str, str] = {}
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key in pairs:
            raise ConfigError(
                f"{plain(key)} is given twice on the command line: {plain(pairs[key])} and {plain(value)}"
            )
        pairs[key] = value
    return pairs


def dump(cfg: CfgNode) -> str:
    """The config as YAML, which load_config reads back to the same config."""
    return cfg.dump(sort_keys=False, default_flow_style=None)


def differing(cfg: CfgNode, other: CfgNode) -> list[str]:
    """Keys in which two configs differ, each with both values."""
    ours, theirs = flat(cfg), flat(other)
    return [
        f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    ]


def flat(cfg: CfgNode) -> dict[str, Any]:
    """Every key with its section, as in TRAIN.epochs, with its value."""
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        found.update(
            {f"{key}.{inner}": held for inner, held in value.items()} if isinstance(value, CfgNode) else {key: value}
        )
    return found


# -------------------------------------------------------------------- the two passes


def _resolve(raw: Raw, pairs: dict[str, str]) -> CfgNode:
    task = _value("TASK", TOP["TASK"], raw, "TASK", pairs)
    _check_sections(raw, pairs, task)
    for module in _value("PLUGINS", TOP["PLUGINS"], raw, "PLUGINS", pairs):
        _import(module)
    node = CfgNode()
    for key, kind in TOP.items():
        node[key] = _value(key, kind, raw, key, pairs)
    for section in schema.sections(task):
        node[section] = _section(task, section, raw.get(section, {}), pairs)
    _check(node)
    node.freeze()
    return node


def _section(task: str, section: str, raw: Raw, pairs: dict[str, str]) -> CfgNode:
    """One section, parsed against the keys of its settings and of the part that it names."""
    node, name = CfgNode(), ""
    if section in schema.FAMILIES:
        node.name = name = annotations.parse(
            f"{section}.name", pairs.get(f"{section}.name", raw.get("name", schema.DEFAULT_PARTS[section])), str
        )
        raw = _without_keys_of_another_part(task, section, raw, name)
    keys = schema.section_keys(task, section, name)
    known = [*keys, *(["name"] if "name" in node else [])]
    asked = [*raw, *(key.partition(".")[2] for key in pairs if key.startswith(section + "."))]
    for key in asked:
        if key not in known:
            of = f" of {node.name}" if "name" in node else ""
            raise ConfigError(f"unknown key {plain(f'{section}.{key}')}{of}: {one_of(key, known)}")
    for key, kind in keys.items():
        node[key] = _value(f"{section}.{key}", kind, raw, key, pairs)
    return node


def _without_keys_of_another_part(task: str, section: str, raw: Raw, name: str) -> Raw:
    """Where the command line put another part in place of the file's, the file's keys for that one have no effect."""
    named = str(raw.get("name", schema.DEFAULT_PARTS[section]))
    if named == name or named not in schema.FAMILIES[section].members():
        return raw
    foreign = set(keys_of(schema.FAMILIES[section].named(named))) - set(schema.section_keys(task, section, name))
    for key in foreign & set(raw):
        LOG.warning(
            "%s.%s of the file has no effect: it is a key of %s, and %s was asked for", section, key, named, name
        )
    return {key: value for key, value in raw.items() if key not in foreign}


def _check_sections(raw: Raw, pairs: dict[str, str], task: str) -> None:
    sections = schema.sections(task)
    known = [*TOP, *sections]
    for section in [*raw, *(key.partition(".")[0] for key in pairs)]:
        if section in schema.ORDER and section not in sections:
            raise ConfigError(f"{section} is no section of TASK {task}. {one_of('', known)}")
        if section not in known:
            raise ConfigError(f"unknown section or key {plain(section)}: {one_of(section, known)}")
    for section in sections:
        if not isinstance(raw.get(section, {}), dict):
            raise ConfigError(f"{section} is {shown(raw[section])}: it must be a mapping of keys")
        if section in pairs:
            raise ConfigError(f"{section} is a section: name one of its keys, as in {section}.KEY VALUE")
    for key in pairs:
        if key.partition(".")[0] in TOP and "." in key:
            raise ConfigError(f"unknown key {plain(key)}: {key.partition('.')[0]} has no keys below it")


def _check(node: CfgNode) -> None:
    """Ranges, and parts that must fit each other: every section is made once, the model without its memory."""
    schema.check_limits(node)
    if node.SEED < 0:
        raise ConfigError(f"SEED is {node.SEED}: it must be at least 0")
    for section in schema.SETTINGS[node.TASK]:
        schema.settings(node, section)
    schema.part(node, "OPTIMIZER")
    build.check(node)


def _check_recipe(name: str) -> None:
    names = recipe_names()
    if name and names and name not in names:
        raise ConfigError(f"RECIPE is {shown(name)}: it names the recipe that this file follows. {one_of(name, names)}")


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's own code does; Ctrl-C goes on
        known = isinstance(error, ImportError | TypeError | ValueError)  # the last two: a relative or an empty name
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = str(error) if known else f"{type(error).__name__}: {error}, {where.filename} line {where.lineno}"
        raise ConfigError(
            f"PLUGINS names {shown(module)}, which cannot be imported ({reason[:REASON]}): install it, or put its "
            "folder on PYTHONPATH, or mend it"
        ) from error


# -------------------------------------------------------------------- reading


def _text_of(file: Path) -> str:
    """Raises ConfigError where it is no file of UTF-8 text, or too large for a config."""
    called = f"config {plain(str(file))}"
    try:
        if not file.is_file():  # nor a pipe or a device, which may have no end
            raise ConfigError(f"{called} {'is no file' if file.exists() else 'does not exist'}")
        with file.open("rb") as opened:
            held = opened.read(CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{called} cannot be read: {error.strerror}") from error
    if len(held) > CONFIG_BYTES:
        raise ConfigError(f"{called} has more than {CONFIG_BYTES:,} bytes: it is none")
    try:
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{called} is not UTF-8 text: byte {error.start} is {held[error.start]:#04x}") from error


def _value(key: str, kind: Key, raw: Raw, raw_key: str, pairs: dict[str, str]) -> Any:
    """The value of a key, as yacs holds it: from the command line, else the file, else its default."""
    if key not in pairs:
        value = annotations.parse(key, raw[raw_key], kind.annotation) if raw_key in raw else kind.default
    else:
        given = annotations.from_command_line(key, pairs[key], kind.annotation)
        value = annotations.parse(key, given, kind.annotation)
    return list(value) if isinstance(value, tuple) else value
