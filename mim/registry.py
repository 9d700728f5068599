"""Component: a part registers by subclassing its family, and its keyword-only arguments are its config keys."""

import difflib
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

MOST_NAMES = 30  # in an error message
MOST_CHARACTERS = 200  # of a name in an error message
ARGUMENT = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")  # the first line of an argument in a cleaned docstring


@dataclass(frozen=True, slots=True)
class Key:
    """A config key."""

    annotation: Any  # the type that its value is parsed by
    default: Any  # its value where a config does not name it
    meaning: str = ""  # its line in the `Args:` block of the class


class Component:
    """Base of every family of parts.

    `class Encoder(Component, section="ENCODER")` founds a family, named by its section of a config;
    `class Swin(Encoder, name="swin")` joins one. A subclass with neither (a shared base) is not registered. A family
    that is founded in a module `base` has its shipped parts in the modules beside it, and imports them when one is
    needed.

    Raises TypeError where a part's keyword-only argument lacks an annotation or a default, or defaults to None, and
    ValueError where another class already has the name.
    """

    section: ClassVar[str]
    name: ClassVar[str]
    _members: ClassVar[dict[str, type]]
    _package: ClassVar[str]  # of the shipped parts; empty where the founding module holds them all

    def __init_subclass__(cls, *, section: str | None = None, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if section is not None:
            package, _, module = cls.__module__.rpartition(".")
            cls.section, cls._members, cls._package = section, {}, package if module == "base" else ""
        if name is None:
            return
        if not cls.__module__.startswith(f"{cls._package}."):
            cls._import_shipped()  # so that a name which a shipped part has is refused here
        taken = cls._members.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.section}.name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        keys_of(cls)
        cls.name = name
        cls._members[name] = cls

    @classmethod
    def members(cls) -> dict[str, type[Self]]:
        """The registered parts of this family, by name."""
        cls._import_shipped()
        return dict(cls._members)

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The part of that name. Raises ValueError, with the names there are, where there is none."""
        members = cls.members()
        if name not in members:
            raise ValueError(unknown_part(cls.section, name, members))
        return members[name]

    @classmethod
    def _import_shipped(cls) -> None:
        if cls._package:
            _import_modules(cls._package)


@cache
def _import_modules(package: str) -> None:
    """Imports the modules of a package, once."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def keys_of(part: type) -> dict[str, Key]:
    """The config keys of a class: the keyword-only arguments of its constructor.

    A constructor that takes **kwargs also has the keys of the next class in line, to which it passes them.
    """
    meanings: dict[str, str] = {}
    for cls in reversed(part.__mro__):
        meanings |= argument_lines(vars(cls).get("__doc__"))
    keys: dict[str, Key] = {}
    for cls in part.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        hints = typing.get_type_hints(vars(cls)["__init__"])
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        for parameter in parameters:
            name = parameter.name
            if parameter.kind is not parameter.KEYWORD_ONLY or name in keys:
                continue
            if name not in hints or parameter.default in (parameter.empty, None):
                raise TypeError(
                    f"{cls.__qualname__}: the keyword-only argument {name!r} is a config key, so it needs an "
                    "annotation and a default that is not None"
                )
            keys[name] = Key(hints[name], parameter.default, meanings.get(name, ""))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return keys


def argument_lines(docstring: str | None) -> dict[str, str]:
    """What the `Args:` block of a docstring says of each argument, on one line."""
    lines: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if not line.startswith(" "):
            inside, names = line == "Args:", []
        elif inside and (match := ARGUMENT.fullmatch(line)):
            names = match[1].split(", ")
            lines.update(dict.fromkeys(names, match[2]))
        else:
            lines.update({name: f"{lines[name]} {line.strip()}" for name in names})
    return lines


def unknown_part(section: str, name: str, names: Iterable[str]) -> str:
    """The error message for a part that a family does not have."""
    return f"{section}.name {name[:MOST_CHARACTERS]!r} is unknown: {one_of(name, names)}"


def one_of(word: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the nearest allowed word, then all of them, or the first of very many."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{hint}Allowed: {', '.join(names[:MOST_NAMES])}{more}"
