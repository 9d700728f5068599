"""Tables of names: which weight of ours is which of theirs, read in either direction."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim.io.formatting import printable

HOLE = re.compile(r"\{(\w+)([+-]\d+)?\}")  # {block}, or {stage-1}: a number one lower than on the other side
NUMBER = re.compile(r"(?<=\.)[0-9]{1,9}(?=\.)")
TAIL = r"(?P<tail>(?:\.(?:weight|bias))?)"


@dataclass(frozen=True, slots=True)
class Row:
    """One weight, or a module with its weight and bias: its name here, and its name, or names, there.

    `{block}` stands for a number. Of several names there, ours is theirs stacked along the first axis.
    """

    ours: str
    theirs: tuple[str, ...]


def rows(*pairs: tuple[str, str | tuple[str, ...]]) -> tuple[Row, ...]:
    """A table, from pairs of our name and theirs."""
    return tuple(Row(ours, (theirs,) if isinstance(theirs, str) else theirs) for ours, theirs in pairs)


def below(table: Iterable[Row], ours: str = "", theirs: str = "") -> tuple[Row, ...]:
    """The table with a prefix before all of our names, and one before all of theirs."""
    return tuple(Row(ours + row.ours, tuple(theirs + name for name in row.theirs)) for row in table)


def to_ours(table: Iterable[Row], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Their weights under our names, and the names of theirs that stand in no row, or in one that is not complete."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    patterns = [(row, place, _pattern(name)) for row in table for place, name in enumerate(row.theirs)]
    left = []
    for name in state:
        match = next(((row, place, hit) for row, place, pattern in patterns if (hit := pattern.fullmatch(name))), None)
        if match is None:
            left.append(name)
            continue
        row, place, hit = match
        ours = _filled(row.ours, row.theirs[place], hit)
        parts.setdefault(ours, {})[place] = name
        counts[ours] = len(row.theirs)
    for ours, names in parts.items():
        if len(names) < counts[ours]:
            left += names.values()
        else:
            found[ours] = _stacked([state[names[place]] for place in sorted(names)], list(names.values()))
    return found, left


def _stacked(parts: list[Tensor], names: list[str]) -> Tensor:
    """Along the first axis. Raises ValueError where the parts are no equal ones of a whole."""
    if len(parts) == 1:
        return parts[0]
    if len({(part.shape, part.dtype) for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(f"{printable(name)} {list(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise ValueError(f"parts of one weight must have one shape and type: {shapes}")
    return torch.cat(parts)


def to_theirs(table: Iterable[Row], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Our weights under their names, and the names of ours that stand in no row."""
    found: dict[str, Tensor] = {}
    left = []
    patterns = [(row, _pattern(row.ours)) for row in table]
    for name, weight in state.items():
        match = next(((row, hit) for row, pattern in patterns if (hit := pattern.fullmatch(name))), None)
        if match is None:
            left.append(name)
            continue
        row, hit = match
        count = len(row.theirs)
        if count > 1 and (not weight.ndim or not len(weight) or len(weight) % count):
            raise ValueError(
                f"{printable(name)} has the shape {list(weight.shape)}: it is no {count} parts of one shape"
            )
        parts = (weight,) if count == 1 else weight.chunk(count)
        for theirs, part in zip(row.theirs, parts, strict=True):
            found[_filled(theirs, row.ours, hit)] = part.contiguous()
    return found, left


def fold_names(names: Iterable[str]) -> str:
    """Names in one line: `head.conv.{weight, bias}`, and for numbered modules `blocks.0-3,6.attn.qkv.weight`."""
    places: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in map(printable, names):
        found = tuple(int(number) for number in NUMBER.findall(name))
        places.setdefault(tuple(NUMBER.split(name)), []).append(found)
    ends: dict[str, list[str]] = {}
    for pieces, numbers in places.items():
        for ranges in _ranges(numbers):
            text = pieces[0] + "".join(number + piece for number, piece in zip(ranges, pieces[1:], strict=True))
            module, dot, end = text.rpartition(".")
            ends.setdefault(module + dot, []).append(end)
    return ", ".join(
        module + (tails[0] if len(tails) == 1 else "{" + ", ".join(tails) + "}") for module, tails in ends.items()
    )


def _ranges(places: Iterable[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """As few tuples of ranges as hold these tuples of numbers and no others: numbers with the same ones behind them
    stand together.
    """
    behind: dict[int, list[tuple[int, ...]]] = {}
    for place in places:
        if not place:
            return [()]
        behind.setdefault(place[0], []).append(place[1:])
    together: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, rest in behind.items():
        together.setdefault(tuple(rest), []).append(number)
    return [(_runs(numbers), *ranges) for rest, numbers in together.items() for ranges in _ranges(rest)]


def _runs(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = HOLE.split(template)  # text, hole, shift, text, ...
    text = "".join(
        re.escape(piece) if place % 3 == 0 else rf"(?P<{piece}>[0-9]{{1,9}})"
        for place, piece in enumerate(pieces)
        if place % 3 != 2
    )
    return re.compile(text + TAIL)


def _filled(template: str, matched: str, hit: re.Match[str]) -> str:
    """The template with the numbers that another one, with its own shifts, was matched by."""
    shifts = {name: int(shift or 0) for name, shift in HOLE.findall(matched)}
    return HOLE.sub(lambda hole: str(int(hit[hole[1]]) - shifts[hole[1]] + int(hole[2] or 0)), template) + hit["tail"]
