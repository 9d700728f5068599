"""Annotations: a value from a file or a command line, a text or lists of texts, parsed by its key's annotation."""

import math
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from mim.io.formatting import printable, short_repr
from mim.io.yaml import read_texts

SCALARS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text", dict: "a mapping"}
BOOLEANS = {"true": True, "false": False}
UNIONS = (Union, types.UnionType)
REFUSALS = (ValueError, TypeError, KeyError)


def parse(key: str, value: Any, annotation: Any) -> Any:
    """The value of a key, parsed by its annotation. Raises ValueError with the key, the value and what is allowed."""
    try:
        return _parse(value, annotation)
    except REFUSALS:
        raise ValueError(
            f"{printable(key)} is {short_repr(value)}: it must be {allowed(annotation)}{_as_list(value, annotation)}"
        ) from None


def from_command_line(key: str, text: Any, annotation: Any) -> Any:
    """A text of the command line, or the texts of a list as YAML writes it. Raises ValueError for a broken list."""
    options = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
    takes_list = any(get_origin(option) is tuple for option in options)
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
    """A value of Python as a config file would hold it: a text, or lists and mappings of texts."""
    if isinstance(value, list | tuple):
        return [as_text(each) for each in value]
    if isinstance(value, dict):
        return {str(key): as_text(each) for key, each in value.items()}
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_yaml(value: Any) -> Any:
    """A value as YAML holds it: lists in place of tuples."""
    if isinstance(value, dict):
        return {key: as_yaml(each) for key, each in value.items()}
    return [as_yaml(each) for each in value] if isinstance(value, list | tuple) else value


def unknown(annotation: Any) -> Iterator[Any]:
    """The types in an annotation that no value can be parsed by."""
    origin = get_origin(annotation)
    if origin is tuple or origin in UNIONS:
        for kind in get_args(annotation):
            yield from unknown(kind) if kind is not ... else ()
    elif origin is not Literal and annotation not in SCALARS:
        yield annotation


def _as_list(value: Any, annotation: Any) -> str:
    """How a list of one value is written, where a key takes a list and has its value; else empty."""
    if get_origin(annotation) is not tuple or not isinstance(value, str):
        return ""
    try:
        _parse([value], annotation)
    except REFUSALS:
        return ""
    return f', as in "[{printable(value)}]"'


def _parse(value: Any, annotation: Any) -> Any:
    """Raises one of REFUSALS for another value."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in UNIONS:
        return _first_that_fits(value, arguments)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_parse(item, kind) for item, kind in zip(value, kinds, strict=True))
    if annotation is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value  # of texts, which its reader parses
    if not isinstance(value, str):
        raise TypeError
    if origin is Literal:
        return {str(argument): argument for argument in arguments}[value]
    if annotation is bool:
        return BOOLEANS[value.lower()]
    if annotation is str:
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError  # Python reads bytes that are not UTF-8 as the latter; no log can hold them
        return value
    number = annotation(value)
    if not value.isascii() or (annotation is float and not math.isfinite(number)):
        raise ValueError  # Python's numbers may have the digits of any script
    return number


def _first_that_fits(value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        try:
            return _parse(value, option)
        except REFUSALS:
            continue
    raise ValueError


def allowed(annotation: Any) -> str:
    """What an annotation allows, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin in UNIONS:
        return " or ".join(map(allowed, arguments))
    if origin is tuple:
        if get_origin(arguments[0]) is Literal and arguments[1:] == (...,):
            return f"a list of any of {', '.join(map(str, get_args(arguments[0])))}"
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} "
        kinds = get_args(arguments[0]) if get_origin(arguments[0]) in UNIONS else arguments[:1]
        plurals = [f"{allowed(kind).removeprefix('a ').removeprefix('an ')}s" for kind in kinds]
        return f"a list of {count}{' or '.join(plurals)}"
    return SCALARS.get(annotation, str(annotation))
