"""Component: a part registers by subclassing its family, and its keyword-only arguments are its config keys."""

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

SHOWN = 30
SHOWN_NAME = 200  # characters


@dataclass(frozen=True, slots=True)
class Key:
    """A config key: the annotation its value is parsed by, and its default."""

    annotation: Any
    default: Any


class Component:
    """Base of every family of parts.

    `class Encoder(Component, section="ENCODER")` founds a family, named by its section of a config;
    `class Swin(Encoder, name="swin")` joins one. A subclass with neither (a shared base) is not registered.

    Raises TypeError where a part's keyword-only argument lacks an annotation or a default, or defaults to None, and
    ValueError where another class already has the name.
    """

    section: ClassVar[str]
    name: ClassVar[str]
    _members: ClassVar[dict[str, type]]
    _home: ClassVar[str]

    def __init_subclass__(cls, *, section: str | None = None, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if section is not None:
            cls.section, cls._members, cls._home = section, {}, cls.__module__
        if name is None:
            return
        known = cls._members.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.section}.name {name!r} is taken by {known.__module__}.{known.__qualname__}")
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
        cls._import_shipped()
        if name not in cls._members:
            raise ValueError(f"{cls.section}.name {name[:SHOWN_NAME]!r} is unknown: {one_of(name, cls._members)}")
        return cls._members[name]

    @classmethod
    def _import_shipped(cls) -> None:
        """Registers the parts that stand beside the family: a module `base` founds it for all modules of its package."""
        package, _, module = cls._home.rpartition(".")
        if module == "base":
            for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{found.name}")


def keys_of(part: type) -> dict[str, Key]:
    """The config keys of a class: the keyword-only arguments of its constructor.

    A constructor that takes **kwargs also has the keys of the next class in line, to which it passes them.
    """
    keys: dict[str, Key] = {}
    for cls in part.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        hints = typing.get_type_hints(vars(cls)["__init__"])
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        for parameter in parameters:
            if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in keys:
                continue
            if parameter.name not in hints or parameter.default in (parameter.empty, None):
                raise TypeError(
                    f"{cls.__qualname__}: the keyword-only argument {parameter.name!r} is a config key, "
                    "so it needs an annotation and a default that is not None"
                )
            keys[parameter.name] = Key(hints[parameter.name], parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return keys


def one_of(word: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the nearest allowed word, then all of them, or the first of very many."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{meant}Allowed: {', '.join(names[:SHOWN])}{more}"
