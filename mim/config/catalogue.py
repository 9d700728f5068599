"""Catalogue: the keys of the shipped parts, read from their source files, so that reading a config needs no torch.

`registry.keys_of` gives the same keys of an imported class; a test compares the two for every part.
"""

import ast
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mim.registry import Key, argument_lines

ROOT = Path(__file__).resolve().parents[1]
NAMES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "tuple": tuple, "Literal": Literal}


class _Definition(NamedTuple):
    """A class or a value of a module, not executed."""

    module: str
    node: ast.expr | ast.ClassDef


def names(module: str) -> list[str]:
    """The names of the shipped parts of the family that a module founds."""
    return list(_parts(module))


@cache
def keys(module: str, name: str) -> dict[str, Key]:
    """The keys of a shipped part, as registry.keys_of gives them."""
    classes = list(_lineage(_parts(module)[name]))
    meanings: dict[str, str] = {}
    for definition in reversed(classes):
        meanings |= argument_lines(ast.get_docstring(definition.node))  # type: ignore[arg-type]
    result: dict[str, Key] = {}
    for definition in classes:
        body = definition.node.body  # type: ignore[union-attr]
        functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        if not functions:
            continue
        init = functions[0]
        for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
            if argument.arg not in result:
                annotation, value = (_value(definition.module, node) for node in (argument.annotation, default))
                result[argument.arg] = Key(annotation, value, meanings.get(argument.arg, ""))
        if init.args.kwarg is None:
            break
    return result


def document(module: str, name: str) -> str | None:
    """The docstring of a shipped part."""
    return ast.get_docstring(_parts(module)[name].node)  # type: ignore[arg-type]


@cache
def _parts(module: str) -> dict[str, _Definition]:
    """The classes with a `name=`: of a module `base` those of its whole package."""
    package, _, last = module.rpartition(".")
    modules = [module]
    if last == "base":
        modules = [f"{package}.{file.stem}" for file in sorted(_path(package).glob("*.py")) if file.stem != "__init__"]
    return {
        str(keyword.value.value): definition
        for each in modules
        for definition in _definitions(each).values()
        if isinstance(definition.node, ast.ClassDef)
        for keyword in definition.node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }


def _lineage(definition: _Definition) -> Iterator[_Definition]:
    """A class and what it inherits from this toolkit, but for the registry."""
    assert isinstance(definition.node, ast.ClassDef)
    yield definition
    for base in definition.node.bases:
        above = _definitions(definition.module).get(base.id) if isinstance(base, ast.Name) else None
        if above is not None and isinstance(above.node, ast.ClassDef) and above.module != "mim.registry":
            yield from _lineage(above)


@cache
def _definitions(module: str) -> dict[str, _Definition]:
    """The classes and values at the top of a module, with those it imports from this toolkit, by name."""
    definitions: dict[str, _Definition] = {}
    for node in ast.parse(_path(module).with_suffix(".py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            definitions[node.name] = _Definition(module, node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            definitions[node.targets[0].id] = _Definition(module, node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mim."):
            source = str(node.module)
            if _path(source).with_suffix(".py").is_file():
                others = _definitions(source)
                definitions |= {
                    alias.asname or alias.name: others[alias.name] for alias in node.names if alias.name in others
                }
    return definitions


def _value(module: str, node: ast.expr | None) -> Any:
    """The value of an annotation or a default. Raises TypeError for an expression beyond those that parts use."""
    match node:
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.Name(id=name) if name in _definitions(module):
            definition = _definitions(module)[name]
            if isinstance(definition.node, ast.expr):
                return _value(definition.module, definition.node)
        case ast.Tuple(elts=items):
            return tuple(_value(module, item) for item in items)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value(module, left) | _value(module, right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(module, left) / _value(module, right)
        case ast.Subscript(value=generic, slice=arguments):
            return _value(module, generic)[_value(module, arguments)]
        case ast.expr():
            with suppress(ValueError):
                return ast.literal_eval(node)
    text = "nothing" if node is None else ast.unparse(node)
    raise TypeError(f"{module}: the keys of a part can be read only from plain annotations and defaults, not {text}")


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")[1:])
