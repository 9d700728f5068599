"""Annotations: a value from a file or a command line, a text or lists of texts, parsed by its key's annotation."""

import math
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from mim.io.formatting import printable, short_repr
from mim.io.yaml import read_texts

SCALARS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}


def parse(key: str, value: Any, annotation: Any) -> Any:
    """The value of a key, parsed by its annotation. Raises ValueError with the key, the value and what is allowed."""
    try:
        return _parse(value, annotation)
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{printable(key)} is {short_repr(value)}: it must be {allowed(annotation)}")


def from_command_line(key: str, text: Any, annotation: Any) -> Any:
    """A text of the command line; for a list, which is written as in YAML, `"[96, 160]"`, its texts.

    Raises ValueError for a text that is no such list.
    """
    takes_list = any(get_origin(option) is tuple for option in _options(annotation))
    if not takes_list or not isinstance(text, str) or not text.lstrip().startswith("["):
        return text
    try:
        return read_texts(text)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{printable(key)} is {printable(text)}: it is not a list as YAML writes it ({reason})"
        ) from error


def as_text(value: Any) -> Any:
    """A value of Python as a config file would hold it: a text, or lists of texts."""
    if isinstance(value, list | tuple):
        return [as_text(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def unknown(annotation: Any) -> Iterator[Any]:
    """The types in an annotation that no value can be parsed by."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        inside = list(arguments)
    elif origin is tuple:
        inside = [kind for kind in arguments if kind is not ...]
    else:
        inside = []
        if origin is not Literal and annotation not in SCALARS:
            yield annotation
    for kind in inside:
        yield from unknown(kind)


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _parse(value: Any, annotation: Any) -> Any:
    """Raises ValueError or TypeError for another value."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, arguments)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_parse(item, kind) for item, kind in zip(value, kinds, strict=True))
    if not isinstance(value, str):
        raise TypeError
    if origin is Literal:
        return arguments[list(map(str, arguments)).index(value)]
    if annotation is bool:
        return {"true": True, "false": False}[value.lower()] if value.lower() in ("true", "false") else _refuse()
    if annotation is str:
        return value if "\0" not in value and _is_unicode(value) else _refuse()
    if not value.isascii():  # Python's numbers may have the digits of any script
        raise ValueError
    if annotation is int:
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else _refuse()


def _first_that_fits(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        try:
            return _parse(value, option)
        except (ValueError, TypeError):
            continue
    return _refuse()


def _is_unicode(text: str) -> bool:
    """False where Python replaced bytes that were not UTF-8: such a text cannot be written to a log."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _refuse() -> Any:
    raise ValueError


def allowed(annotation: Any) -> str:
    """What an annotation allows, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(allowed, arguments))
    if origin is tuple:
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} "
        return f"a list of {count}{allowed(arguments[0]).removeprefix('a ').removeprefix('an ')}s"
    return SCALARS.get(annotation, str(annotation))
