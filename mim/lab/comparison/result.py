"""Comparison: what a table, a CSV file and a page show of several runs, as plain values."""

from dataclasses import dataclass, field
from typing import Literal

from mim.ops.intervals import Estimate, Paired

Axis = Literal["images_seen", "flops", "seconds"]
Kind = Literal["method", "fairness", "other"]


@dataclass(frozen=True, slots=True)
class Column:
    """A figure that entries have. key: as in Entry.figures; section: which table it stands in; note: what a reader
    must know of it, such as that losses of different targets do not compare.
    """

    key: str
    title: str
    unit: str
    section: Literal["accuracy", "loss", "cost"]
    better: Literal["higher", "lower", "neither"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe over its seeds. method: the recipe in a line; figures: in the unit of their columns, absent where no
    run has them; values: the single runs behind a figure, in the same unit, in the order of the seeds.
    """

    name: str
    method: str
    seeds: tuple[int, ...]
    folders: tuple[str, ...]
    figures: dict[str, Estimate]
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity of one run while it trained. at: for each axis that is known, the place of every value; values: in
    percent where the quantity is an accuracy.
    """

    entry: str
    seed: int
    quantity: str
    at: dict[Axis, tuple[float, ...]]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A config key in which entries differ. values: one an entry, in words; kind: `method` for what the method
    decides, `fairness` for what should be equal in a fair comparison, `other`.
    """

    key: str
    kind: Kind
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two entries in one column, seed against seed."""

    column: str
    first: str
    second: str
    seeds: tuple[int, ...]
    result: Paired


@dataclass(frozen=True, slots=True)
class Budget:
    """What each entry had reached within a budget. limit: images, FLOPs or seconds; quantity: as in Curve; reached:
    by name of the entry, in percent where the quantity is an accuracy.
    """

    axis: Axis
    limit: float
    quantity: str
    reached: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A picture with words. png: the file's bytes; alt: what it shows, for those who cannot see it."""

    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures of one run of an entry and of what came from it, in the unit of their columns."""

    entry: str
    seed: int
    folder: str
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is shown. made: ISO date and time; left_out: folder and reason; warnings: why a comparison may
    not be fair; version: of the toolkit; command: what makes this comparison again; notes: what else
    a reader must know, such as what could not be shown; runs: the figures run by run.
    """

    title: str
    made: str
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    curves: tuple[Curve, ...] = ()
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    tests: tuple[PairedTest, ...] = ()
    budgets: tuple[Budget, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    names_of_quantities: dict[str, str] = field(default_factory=dict)  # of curves and budgets, in words
    version: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[RunFigures, ...] = ()
