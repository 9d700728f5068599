"""Configs: a YAML file and `KEY VALUE` pairs become one complete, checked and frozen yacs node.

Two passes: first the names of the parts are read, then the file is parsed against the keys of those very parts.
Every scalar is taken as text and parsed by its key's annotation, from the file and the command line alike.
"""

import importlib
import logging
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from yacs.config import CfgNode

from mim import build, schema
from mim.interop import Weights, telling
from mim.ops.recipes import recipe_names
from mim.registry import Key, keys_of, one_of

LOG = logging.getLogger("mim")

TOP: dict[str, Key] = {
    "TASK": Key(schema.TaskName, "pretrain"),
    "SEED": Key(int, 0),
    "RECIPE": Key(str, ""),
    "PLUGINS": Key(tuple[str, ...], ()),
}
Raw = dict[str, Any]


class ConfigError(ValueError):
    """A config that cannot be used; the text names the key, its value and what is allowed."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The complete config of a file and `KEY VALUE` pairs, frozen: `load_config("a.yaml", ["TRAIN.epochs", "2"])`.

    Raises ConfigError for an unknown or repeated key, a value of the wrong type or range, parts that do not fit each
    other, and a RECIPE that is none.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config {path} does not exist")
    try:
        cfg = parse_config(file.read_text(encoding="utf-8"), overrides)
        _check_recipe(cfg.RECIPE)  # not where a run is read again, whose recipe may be gone
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return cfg


def parse_config(text: str, overrides: Sequence[str] = ()) -> CfgNode:
    """As load_config, of the text of a file."""
    return _resolve(read_mapping(text), read_pairs(overrides))


def describe(weights: Weights, overrides: Sequence[str]) -> CfgNode:
    """The complete config of a file's weights. Raises ValueError for keys that neither it nor the pairs tell."""
    asked = [key for key in weights.untold if key not in overrides[::2]]
    if asked:
        raise ValueError(
            f"{weights.source} does not tell {' and '.join(asked)}: name each, as in ENCODER.heads 12 or "
            'DATA.image_size "[224, 224]"'
        )
    return parse_config(telling.as_yaml(weights.sections), overrides)


def read_mapping(text: str) -> Raw:
    """A YAML mapping with every scalar as text. Raises ConfigError where it is none, or a key stands twice."""
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506 - a subclass of BaseLoader: text only
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"it must be a mapping of sections, not {type(raw).__name__}")
    return raw


def read_pairs(overrides: Sequence[str]) -> dict[str, str]:
    """KEY VALUE pairs of a command line. Raises ConfigError for a key without a value, or one that is given twice."""
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs, KEY VALUE: {overrides[-1]!r} has no value")
    pairs: dict[str, str] = {}
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key in pairs:
            raise ConfigError(f"{key} is given twice on the command line: {pairs[key]} and {value}")
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
        node.name = name = str(pairs.get(f"{section}.name", raw.get("name", schema.DEFAULT_PARTS[section])))
        raw = _without_keys_of_another_part(task, section, raw, name)
    keys = schema.section_keys(task, section, name)
    known = [*keys, *(["name"] if "name" in node else [])]
    asked = [*raw, *(key.partition(".")[2] for key in pairs if key.startswith(section + "."))]
    for key in asked:
        if key not in known:
            of = f" of {node.name}" if "name" in node else ""
            raise ConfigError(f"unknown key {section}.{key}{of}: {one_of(key, known)}")
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
            raise ConfigError(f"unknown section or key {section}: {one_of(section, known)}")
    for section in sections:
        if not isinstance(raw.get(section, {}), dict):
            raise ConfigError(f"{section} is {raw[section]!r}: it must be a mapping of keys")
        if section in pairs:
            raise ConfigError(f"{section} is a section: name one of its keys, as in {section}.KEY VALUE")
    for key in pairs:
        if key.partition(".")[0] in TOP and "." in key:
            raise ConfigError(f"unknown key {key}: {key.partition('.')[0]} has no keys below it")


def _check(node: CfgNode) -> None:
    """Ranges, and parts that must fit each other: every section is made once, the model without its memory."""
    if node.SEED < 0:
        raise ConfigError(f"SEED is {node.SEED}: it must be at least 0")
    for section in schema.SETTINGS[node.TASK]:
        schema.settings(node, section)
    schema.part(node, "OPTIMIZER")
    build.check(node)


def _check_recipe(name: str) -> None:
    names = recipe_names()
    if name and names and name not in names:
        raise ConfigError(f"RECIPE is {name!r}: it names the recipe that this file follows. {one_of(name, names)}")


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:  # the last two: a relative or an empty name
        raise ConfigError(
            f"PLUGINS names {module!r}, which cannot be imported ({error}): install it, or put its folder on PYTHONPATH"
        ) from error


# -------------------------------------------------------------------- reading and parsing


class _Loader(yaml.BaseLoader):
    """Every scalar as text; a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _value(key: str, kind: Key, raw: Raw, raw_key: str, pairs: dict[str, str]) -> Any:
    """The value of a key, as yacs holds it: from the command line, else the file, else its default."""
    if key not in pairs:
        value = _parse(key, raw[raw_key], kind.annotation) if raw_key in raw else kind.default
    else:
        value = _parse(key, _from_command_line(key, pairs[key], kind.annotation), kind.annotation)
    return list(value) if isinstance(value, tuple) else value


def _from_command_line(key: str, text: str, annotation: Any) -> Any:
    """Lists are written as in YAML: `DATA.image_size "[96, 160]"`."""
    takes_list = any(get_origin(option) is tuple for option in _options(annotation))
    if not takes_list or not text.lstrip().startswith("["):
        return text
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - as above
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} is {text}: it is not a list as YAML writes it") from error


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _parse(key: str, value: Any, annotation: Any) -> Any:
    """A value by its annotation. Raises ConfigError that names the key, the value and what is allowed."""
    for option in _options(annotation):
        try:
            return _parse_one(value, option)
        except (ValueError, TypeError):
            continue
    allowed = " or ".join(_words(option) for option in _options(annotation))
    raise ConfigError(f"{key} is {value!r}: it must be {allowed}")


def _parse_one(value: Any, annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_parse_one(item, kind) for item, kind in zip(value, kinds, strict=True))
    if not isinstance(value, str):
        raise TypeError
    if origin is Literal:
        return arguments[arguments.index(value)]
    if annotation is bool:
        return {"true": True, "false": False}[value.lower()] if value.lower() in ("true", "false") else _refuse()
    if annotation is float:
        number = float(value)
        return number if math.isfinite(number) else _refuse()
    return annotation(value)


def _refuse() -> Any:
    raise ValueError


def _words(annotation: Any) -> str:
    """What an annotation allows, for an error message."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(arguments) if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} "
        return f"a list of {count}{_words(arguments[0]).removeprefix('a ').removeprefix('an ')}s"
    words = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}
    return words.get(annotation, str(annotation))
