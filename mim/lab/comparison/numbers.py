"""How figures are written: a unit, a prefix and a number of digits that suit a whole column."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mim.lab.comparison.result import Column, Entry
from mim.ops.intervals import Estimate

Better = Literal["higher", "lower", "neither"]
Ladder = tuple[tuple[float, str], ...]  # what a unit is divided by, and what it is called then
TIME: Ladder = ((1, "s"), (60, "min"), (3600, "h"), (86400, "days"))
BYTES: Ladder = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
PREFIXES: Ladder = ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"), (1e18, "E"), (1e21, "Z"))
FLOPS: Ladder = tuple((size, f"{prefix}FLOP") for size, prefix in PREFIXES)
LADDERS: dict[str, Ladder] = {
    "s": TIME,
    "seconds": TIME,
    "B": BYTES,
    "bytes": BYTES,
    "FLOP": FLOPS,
    "FLOPs": FLOPS,
    "": PREFIXES,
}
MOST_DIGITS = 6  # after the point; smaller figures are written with an exponent
PLAIN = 1e5  # counts below stand in full
NOTHING = "\N{EN DASH}"
FIGURE_SPACE = "\N{FIGURE SPACE}"  # as wide as a digit


@dataclass(frozen=True, slots=True)
class Style:
    """How the figures of a column are written. factor: what they are divided by; digits: after the point, None for an
    exponent where it is short.
    """

    factor: float
    unit: str
    digits: int | None

    def text(self, value: float) -> str:
        """The figure without its unit."""
        if not math.isfinite(value):
            return "not finite"
        scaled = value / self.factor
        text = f"{scaled:.3g}" if self.digits is None else f"{scaled:,.{self.digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as shown. half: with its sign; runs: how many where it is not all of the entry's; order: sorts by it."""

    text: str = NOTHING
    half: str = ""
    runs: int | None = None
    order: float | None = None
    best: bool = False


def style_of(unit: str, estimates: Iterable[Estimate]) -> Style:
    """One style for a column.

    The unit's prefix suits the middle value. Where values have intervals, three in four of these show a digit that is
    not 0, and the middle value at most five; elsewhere the smallest value shows three. Percentages show at least one
    digit after the point.
    """
    estimates = [found for found in estimates if math.isfinite(found.mean)]
    sizes = [abs(found.mean) for found in estimates if found.mean]
    factor, name = _rung(unit, median(sizes)) if sizes else (1.0, unit)
    halves = sorted(found.half / factor for found in estimates if found.half)
    if halves:
        finest = 4 - _power(median(sizes) / factor) if sizes else MOST_DIGITS
        digits = min(-_power(halves[len(halves) // 4]), finest)
    elif sizes and any(found.mean != int(found.mean) or factor != 1 for found in estimates):
        digits = 1 if unit == "%" else 2 - _power(min(sizes) / factor)
    else:
        digits = 0
    digits = max(digits, 1 if unit == "%" else 0)
    return Style(factor, name, digits if digits <= MOST_DIGITS else None)


def _power(size: float) -> int:
    """Of ten, that a number starts with."""
    return math.floor(math.log10(size))


def styles_of(columns: Iterable[Column], entries: Sequence[Entry]) -> dict[str, Style]:
    """A style for each column, by its key. Percentages of one section share one, so that they read alike."""
    columns = list(columns)
    figures = {
        column.key: [entry.figures[column.key] for entry in entries if column.key in entry.figures]
        for column in columns
    }
    styles = {}
    for column in columns:
        alike = [other.key for other in columns if other.unit == "%" == column.unit and other.section == column.section]
        styles[column.key] = style_of(column.unit, [found for key in alike or [column.key] for found in figures[key]])
    return styles


def cells(entries: Sequence[Entry], figures: list[Estimate | None], style: Style, better: Better) -> list[Cell]:
    """A column. Halves are padded to one width, so that points stand above points."""
    means = [found.mean for found in figures if found is not None and math.isfinite(found.mean)]
    best = style.text((max if better == "higher" else min)(means)) if len(means) > 1 and better != "neither" else None
    halves = [style.text(found.half) if found and found.half is not None else "" for found in figures]
    if not any(found and found.half for found in figures):
        halves = [""] * len(figures)  # the same in every run, such as a count of parameters
    width = max(map(len, halves), default=0)
    shown_cells = []
    for entry, found, half in zip(entries, figures, halves, strict=True):
        if found is None:
            shown_cells.append(Cell(half=FIGURE_SPACE * (width + 2) if width else ""))
            continue
        text = style.text(found.mean)
        shown = f"± {half.rjust(width, FIGURE_SPACE)}" if half else FIGURE_SPACE * (width + 2) if width else ""
        runs = None if found.runs == len(entry.seeds) else found.runs
        order = found.mean if math.isfinite(found.mean) else None
        shown_cells.append(Cell(text, shown, runs, order, text == best))
    return shown_cells


def short(value: float, unit: str) -> str:
    """A figure with its unit in three digits: `20k`, `1.5 PFLOP`, `2 min`."""
    factor, name = _rung(unit, abs(value), plain=0)
    number = f"{value / factor:.3g}" if abs(value / factor) < 1000 else f"{value / factor:,.0f}"
    return f"{number}{name}" if unit == "" else f"{number}\N{NO-BREAK SPACE}{name}"


def chance(p: float | None) -> str:
    """A p-value in three decimals."""
    if p is None or math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many round numbers within low..high."""
    step = _step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no smaller."""
    power = 10.0 ** _power(least)
    return next(power * share for share in (1, 2, 5, 10) if power * share >= least * (1 - 1e-9))


def _rung(unit: str, size: float, plain: float = PLAIN) -> tuple[float, str]:
    ladder = LADDERS.get(unit)
    if ladder is None or (unit == "" and size < plain):
        return 1.0, unit
    enough = 2 if ladder is TIME else 1  # 90 s rather than 1.5 min
    return max((rung for rung in ladder if rung[0] == 1 or size >= enough * rung[0]), key=lambda rung: rung[0])
