"""Plain YAML: scalars, lists and mappings of limited size; reading creates no other object and runs no code.

Anchors and aliases are allowed, and what they repeat counts towards the limits. Tags are not allowed.
"""

from typing import Any

import yaml

from mim.io.formatting import short_repr
from mim.io.limits import CONFIG_BYTES, CONFIG_LEVELS, CONFIG_VALUES


def read_texts(text: str) -> Any:
    """A YAML document with every scalar as text. Raises ValueError, naming the line, where it is not plain YAML."""
    return _load(text, _Texts)


def read_values(text: str) -> Any:
    """A YAML document with scalars as numbers, booleans, null or text. Raises ValueError as read_texts does."""
    return _load(text, _Values)


def _load(text: str, loader: type[yaml.BaseLoader] | type[yaml.SafeLoader]) -> Any:
    if len(text) > CONFIG_BYTES:
        raise ValueError(f"it has {len(text):,} characters, and at most {CONFIG_BYTES:,} are allowed")
    try:
        return yaml.load(text, loader)  # noqa: S506 - subclasses of BaseLoader and SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{line}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


class _Plain(yaml.composer.Composer):
    """Checks the limits while nodes are composed, before objects are built; a duplicate key is an error."""

    _level = 0
    _values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[attr-defined]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise ValueError(
                f"line {line}: the tag {short_repr(event.tag)} is not allowed: use plain texts, lists and mappings"
            )
        before = self._values
        self._level += 1
        if self._level > CONFIG_LEVELS:
            raise ValueError(f"line {line}: more than {CONFIG_LEVELS} nested lists and mappings")
        node = super().compose_node(parent, index)
        self._level -= 1
        sizes: dict[int, int] = self.__dict__.setdefault("_sizes", {})  # by id: nodes live as long as this loader
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in sizes:
                raise ValueError(f"line {line}: *{short_repr(event.anchor)[1:-1]} contains itself")
            self._values += sizes[id(node)]
        else:
            self._values += 1
            sizes[id(node)] = self._values - before
        if self._values > CONFIG_VALUES:
            raise ValueError(f"line {line}: more than {CONFIG_VALUES:,} values, counting those that aliases repeat")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"line {line}: a key is a list or a mapping, and must be a text")
            if key_node.value in seen:
                raise ValueError(f"line {line}: key {short_repr(key_node.value)} appears twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)  # type: ignore[misc]


class _Texts(_Plain, yaml.BaseLoader):
    pass


class _Values(_Plain, yaml.SafeLoader):
    pass
