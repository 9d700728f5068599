"""Tables of names: which of our weights corresponds to which of theirs, in both directions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim.io.formatting import printable

NUMBER_FIELD = re.compile(r"\{(\w+)([+-]\d+)?\}")  # {block}, or {stage-1}: one lower than in the other name
NUMBER = re.compile(r"(?<=\.)[0-9]{1,9}(?=\.)")
TAIL = r"(?P<tail>(?:\.(?:weight|bias))?)"


@dataclass(frozen=True, slots=True)
class Row:
    """The names of one weight, or of a module with its weight and bias; `{block}` stands for a number."""

    ours: str
    theirs: tuple[str, ...]  # where there are several, our weight is theirs, stacked along the first axis


def rows(*pairs: tuple[str, str | tuple[str, ...]]) -> tuple[Row, ...]:
    """A table from pairs of our name and theirs."""
    return tuple(Row(ours, (theirs,) if isinstance(theirs, str) else theirs) for ours, theirs in pairs)


def same(*names: str) -> tuple[Row, ...]:
    """A table of weights that have the same names here and there."""
    return tuple(Row(name, (name,)) for name in names)


def add_prefix(table: Iterable[Row], ours: str = "", theirs: str = "") -> tuple[Row, ...]:
    """The table with a prefix before each of our names, and one before each of theirs."""
    return tuple(Row(ours + row.ours, tuple(theirs + name for name in row.theirs)) for row in table)


def to_ours(table: Iterable[Row], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Their weights under our names, and the names of theirs that match no row, or a row of which others are missing.

    Raises ValueError where weights to be stacked differ in shape or type.
    """
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    patterns = [(row, _pattern(row.theirs[0])) for row in table]
    for name in state:
        for row, pattern in patterns:
            hit = pattern.fullmatch(name)
            names = [_fill_in(part, row.theirs[0], hit) for part in row.theirs] if hit else []
            if hit and all(part in state for part in names):
                renamed[_fill_in(row.ours, row.theirs[0], hit)] = _stack([state[part] for part in names], names)
                used.update(names)
                break
    return renamed, [name for name in state if name not in used]


def to_theirs(table: Iterable[Row], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Our weights under their names, and the names of ours that match no row.

    Raises ValueError where a weight cannot be split into equal parts.
    """
    renamed: dict[str, Tensor] = {}
    left_out = []
    patterns = [(row, _pattern(row.ours)) for row in table]
    for name, weight in state.items():
        row, hit = next(((row, hit) for row, pattern in patterns if (hit := pattern.fullmatch(name))), (None, None))
        if row is None or hit is None:
            left_out.append(name)
            continue
        count = len(row.theirs)
        if count > 1 and (not weight.ndim or not len(weight) or len(weight) % count):
            raise ValueError(
                f"{printable(name)} has the shape {list(weight.shape)}: it cannot be split into {count} equal parts"
            )
        parts = (weight,) if count == 1 else weight.chunk(count)
        for theirs, part in zip(row.theirs, parts, strict=True):
            renamed[_fill_in(theirs, row.ours, hit)] = part.contiguous()
    return renamed, left_out


def fold_names(names: Iterable[str]) -> str:
    """Names in one line: `head.conv.{weight, bias}`, and for numbered modules `blocks.0-3,6.attn.qkv.weight`."""
    numbers: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in map(printable, names):
        numbers.setdefault(tuple(NUMBER.split(name)), []).append(tuple(map(int, NUMBER.findall(name))))
    tails: dict[str, list[str]] = {}
    for pieces, tuples in numbers.items():
        for ranges in _ranges(tuples):
            text = pieces[0] + "".join(number + piece for number, piece in zip(ranges, pieces[1:], strict=True))
            module, dot, tail = text.rpartition(".")
            tails.setdefault(module + dot, []).append(tail)
    return ", ".join(
        module + (ends[0] if len(ends) == 1 else "{" + ", ".join(ends) + "}") for module, ends in tails.items()
    )


def _ranges(tuples: Iterable[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """The fewest tuples of ranges for exactly these tuples of numbers; first numbers with the same rest share one."""
    rests: dict[int, list[tuple[int, ...]]] = {}
    for numbers in tuples:
        if not numbers:
            return [()]
        rests.setdefault(numbers[0], []).append(numbers[1:])
    by_rest: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, rest in rests.items():
        by_rest.setdefault(tuple(rest), []).append(number)
    return [(_runs(first), *ranges) for rest, first in by_rest.items() for ranges in _ranges(rest)]


def _runs(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = NUMBER_FIELD.split(template)  # text, field, shift, text, ...
    text = "".join(
        re.escape(piece) if index % 3 == 0 else rf"(?P<{piece}>[0-9]{{1,9}})"
        for index, piece in enumerate(pieces)
        if index % 3 != 2
    )
    return re.compile(text + TAIL)


def _fill_in(template: str, matched: str, hit: re.Match[str]) -> str:
    """The template with the numbers of the name that `matched`, a template with shifts of its own, matched."""
    shifts = {name: int(shift or 0) for name, shift in NUMBER_FIELD.findall(matched)}

    def number(field: re.Match[str]) -> str:
        return str(int(hit[field[1]]) - shifts[field[1]] + int(field[2] or 0))

    return NUMBER_FIELD.sub(number, template) + hit["tail"]


def _stack(parts: list[Tensor], names: list[str]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape, part.dtype) for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(f"{printable(name)} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise ValueError(f"the parts of one weight must have the same shape and type: {shapes}")
    return torch.cat(parts)
