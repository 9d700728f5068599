"""Figures: the values of a result as rows of a table, with their 95% intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

from mim.metric_keys import at_start, interval

MOST = 40  # rows; a probe has a row for each of its settings
Row = tuple[str, ...]


def figure_rows(values: Mapping[str, Any]) -> tuple[Row, ...]:
    """A row for each value that is a number, text, or a mapping of them; what is left out stands in the last row.

    Intervals and values before the first step stand beside their metric. Lists, such as names of files, have no row.
    """
    rows = list(_rows(values))
    more = len(rows) - MOST
    if more > 0:
        rows = [*rows[:MOST], (f"and {more} more", "", "")]
    return tuple(rows) if any(row[2] for row in rows) else tuple(row[:2] for row in rows)


def value_text(name: str, value: object) -> str:
    """A metric in four decimals, a count with separators."""
    if isinstance(value, float):
        return f"{value:.4f}" if "/" in name else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


def _rows(values: Mapping[str, Any]) -> Iterator[Row]:
    beside = {key for name in values for key in (at_start(name), interval(name))}
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield name, "", ""
            for label, each in value.items():
                yield f"\N{EM SPACE}{label}", _nested(each), ""
        elif name not in beside and isinstance(value, (int, float, str)):
            yield name, value_text(name, value), _beside(values, name)


def _nested(value: object) -> str:
    """One of the values by class, column or corruption."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(each)}" for name, each in value.items() if not isinstance(each, list))
    return f"{value:.4f}" if isinstance(value, float) else value_text("", value)


def _beside(values: Mapping[str, Any], name: str) -> str:
    ends, first = values.get(interval(name)) or (), values.get(at_start(name))
    texts = [f"95%: {' to '.join(f'{end:.4f}' for end in ends)}"] if ends else []
    return ", ".join([*texts, *([f"at start {value_text(name, first)}"] if first is not None else [])])
