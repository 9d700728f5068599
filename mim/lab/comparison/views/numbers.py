"""How numbers are written: a unit, a prefix and a number of digits that suit a whole column."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from mim.lab.comparison.result import Column, Entry
from mim.ops.intervals import Estimate

Bounds = tuple[float, float]  # the least and the most that a value can be
Units = tuple[tuple[float, str], ...]  # what a value is divided by, and the unit that it then has
TIME: Units = ((1, "s"), (60, "min"), (3600, "h"), (86400, "days"))
BYTES: Units = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"), (2**40, "TiB"))
PREFIXES: Units = tuple((10.0 ** (3 * index), prefix) for index, prefix in enumerate(("", *"kMGTPEZ")))
FLOPS: Units = tuple((size, f"{prefix}FLOP") for size, prefix in PREFIXES)
UNITS: dict[str, Units] = {"s": TIME, "B": BYTES, "FLOP": FLOPS, "": PREFIXES}
MOST_DIGITS = 6  # after the point; smaller numbers have an exponent
WITHOUT_PREFIX = 1e5  # counts below have none
ANY: Bounds = (-math.inf, math.inf)
POINTS: Bounds = (-100.0, 100.0)  # of the difference of two percentages
NOTHING = "\N{EN DASH}"
FIGURE_SPACE = "\N{FIGURE SPACE}"  # as wide as a digit


@dataclass(frozen=True, slots=True)
class Style:
    """How the numbers of a column are written."""

    factor: float  # what they are divided by
    unit: str
    digits: int | None  # after the point; None for an exponent where that is short

    def text(self, value: float) -> str:
        if not math.isfinite(value):
            return "not finite"
        scaled = value / self.factor
        text = f"{scaled:.3g}" if self.digits is None else f"{scaled:,.{self.digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a table."""

    text: str = NOTHING
    half: str = ""  # the interval: its half with a sign, or both ends in brackets
    runs: int | None = None  # how many runs, where these are not all of the entry's
    order: float | None = None  # the number that sorts the rows
    best: bool = False  # whether it differs from all others beyond chance


def style_of(unit: str, estimates: Iterable[Estimate | None], most: float = math.inf) -> Style:
    """One style for a column; the prefix of its unit suits the middle value.

    Where values have intervals, three in four of these show a digit that is not 0, and the middle value at most five
    digits; elsewhere the smallest value shows three. Percentages show at least one digit after the point, and a metric
    that can be 1 at `most` two.
    """
    finite = [each for each in estimates if each is not None and math.isfinite(each.mean)]
    sizes = [abs(each.mean) for each in finite if each.mean]
    factor, name = unit_for(unit, median(sizes)) if sizes else (1.0, unit)
    halves = sorted(each.half / factor for each in finite if each.half)
    if halves:
        finest = 4 - _power(median(sizes) / factor) if sizes else MOST_DIGITS
        digits = min(-_power(halves[len(halves) // 4]), finest)
    elif sizes and any(each.mean != int(each.mean) or factor != 1 for each in finite):
        digits = 1 if unit == "%" else 2 - _power(min(sizes) / factor)
    else:
        digits = 0
    digits = max(digits, 1 if unit == "%" else 2 if most <= 1 else 0)
    return Style(factor, name, digits if digits <= MOST_DIGITS else None)


def styles_of(columns: Sequence[Column], entries: Sequence[Entry]) -> dict[str, Style]:
    """A style for each column, by its key. Percentages of one section share one, so that they read alike."""
    styles = {}
    for column in columns:
        share = [other.key for other in columns if other.unit == column.unit == "%" and other.section == column.section]
        keys = share or [column.key]
        styles[column.key] = style_of(
            column.unit, [entry.metrics.get(key) for entry in entries for key in keys], column.most
        )
    return styles


def bounds_of(column: Column, entries: Sequence[Entry]) -> Bounds:
    """The least and the most that a column can be: the least is 0 unless a value is below it."""
    values = [value for entry in entries for value in _values(entry, column.key)]
    return (-math.inf if min(values, default=0.0) < 0 else 0.0), (100.0 if column.unit == "%" else column.most)


def _values(entry: Entry, key: str) -> Sequence[float]:
    return [*entry.values.get(key, ()), *([entry.metrics[key].mean] if key in entry.metrics else [])]


def interval_texts(estimates: Sequence[Estimate | None], style: Style, bounds: Bounds) -> list[str]:
    """The interval of each as text, blank where there is none: halves, or both ends where one would leave the bounds.

    All of a column are written in one way, padded to one width, so that points stand above points.
    """
    constant = not any(each and each.half for each in estimates)  # in every run, such as a count of parameters
    known = {} if constant else {i: each for i, each in enumerate(estimates) if each and each.half is not None}
    whole = [(each.mean - (each.half or 0), each.mean + (each.half or 0)) for each in known.values()]
    cut = {index: each.ends(*bounds) or (each.mean, each.mean) for index, each in known.items()}
    if whole == list(cut.values()):
        texts = {index: style.text(each.half or 0) for index, each in known.items()}
        width = max(map(len, texts.values()), default=0)
        padded = {index: f"± {text.rjust(width, FIGURE_SPACE)}" for index, text in texts.items()}
    else:
        pairs = {index: [style.text(end) for end in ends] for index, ends in cut.items()}
        widths = [max(len(pair[side]) for pair in pairs.values()) for side in (0, 1)]
        padded = {
            index: "[{}, {}]".format(
                *(text.rjust(width, FIGURE_SPACE) for text, width in zip(pair, widths, strict=True))
            )
            for index, pair in pairs.items()
        }
    blank = FIGURE_SPACE * max(map(len, padded.values()), default=0)
    return [padded.get(index, blank) for index in range(len(estimates))]


def cells(
    entries: Sequence[Entry], estimates: Sequence[Estimate | None], style: Style, best: str, bounds: Bounds
) -> list[Cell]:
    """A column. best: the entry whose value is marked; empty for none. bounds: the least and the most it can be."""
    column = []
    for entry, each, interval in zip(entries, estimates, interval_texts(estimates, style, bounds), strict=True):
        if each is None:
            column.append(Cell(half=interval))
            continue
        runs = None if each.runs == len(entry.seeds) else each.runs
        order = each.mean if math.isfinite(each.mean) else None
        column.append(Cell(style.text(each.mean), interval, runs, order, entry.name == best))
    return column


def heading_text(title: str, unit: str) -> str:
    """A heading with its unit, unless that says the same."""
    return f"{title}, {unit}" if unit not in ("", title) else title


def short(value: float, unit: str) -> str:
    """A number with its unit in three digits: `20k`, `1.5 PFLOP`, `2 min`."""
    factor, name = unit_for(unit, abs(value), without_prefix=0)
    number = f"{value / factor:.3g}" if abs(value / factor) < 1000 else f"{value / factor:,.0f}"
    return f"{number}{name}" if unit == "" else f"{number}\N{NO-BREAK SPACE}{name}"


def p_text(p: float | None) -> str:
    """A p-value in three decimals."""
    if p is None or math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ticks(low: float, high: float) -> list[float]:
    """At most seven round numbers within low..high."""
    from matplotlib.ticker import MaxNLocator  # slow to import, and only pages need it

    edge = 1e-9 * (high - low)
    values = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [round(float(value), 12) for value in values if low - edge <= value <= high + edge]


def _power(size: float) -> int:  # of ten, that a number starts with
    return math.floor(math.log10(size))


def unit_for(unit: str, size: float, without_prefix: float = WITHOUT_PREFIX) -> tuple[float, str]:
    """What a value of some size is divided by, and the unit that it then has."""
    units = UNITS.get(unit)
    if units is None or (unit == "" and size < without_prefix):
        return 1.0, unit
    enough = 2 if units is TIME else 1  # 90 s rather than 1.5 min
    return next((each for each in reversed(units) if size >= enough * each[0]), units[0])
