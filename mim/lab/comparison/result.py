"""Comparison: what a table, a CSV file and a page show of several runs, as plain values."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from mim.ops.intervals import Estimate, Paired

Axis = Literal["images_seen", "flops", "seconds"]
Section = Literal["accuracy", "loss", "cost", "more"]  # more: further metrics of held-out labels
Better = Literal["higher", "lower", "neither"]
Role = Literal["method", "fairness", "other"]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric that entries have."""

    key: str
    title: str
    unit: str
    section: Section
    better: Better
    note: str = ""  # what a reader must know, such as that losses of different targets do not compare
    exact: bool = False  # whether it is counted, so that every run of an entry has one value
    most: float = inf  # that it can be; a percentage is at most 100
    group: str = ""  # of further metrics: the title of their protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe over its seeds."""

    name: str
    method: str  # the recipe in one line
    seeds: tuple[int, ...]
    folders: tuple[str, ...]
    metrics: dict[str, Estimate]  # by key of the column, in the unit of the column; absent where no run has the metric
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)  # of the runs behind a metric, by seed
    random: bool = False  # whether its probes and fine-tunings started from random weights


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of one run during training."""

    entry: str
    seed: int
    metric: str
    at: dict[Axis, tuple[float, ...]]  # the position of each value on each axis that is known
    values: tuple[float, ...]  # of the metric, in percent where it is an accuracy


@dataclass(frozen=True, slots=True)
class Setting:
    """A config key in which entries differ."""

    key: str
    role: Role  # method: what the method decides; fairness: what should be equal in a fair comparison
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
    """A metric of each entry within a budget."""

    axis: Axis
    limit: float  # in images, FLOPs or seconds
    metric: str
    estimates: dict[str, Estimate]  # by name of the entry, in percent where the metric is an accuracy
    best: str = ""  # name of the best entry, where its interval meets that of no other


@dataclass(frozen=True, slots=True)
class Sheet:
    """A picture with a caption."""

    title: str
    caption: str
    alt: str  # the text for those who cannot see the picture
    png: bytes  # the content of the file


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """The metrics of one run of an entry, and of what started from it, in the units of their columns."""

    entry: str
    seed: int
    folder: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is shown."""

    title: str
    created: str  # date and time in ISO 8601
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    curves: tuple[Curve, ...] = ()
    settings: tuple[Setting, ...] = ()
    evidence: tuple[str, ...] = ()  # what the numbers cannot bear: too few seeds, no better than random weights
    warnings: tuple[str, ...] = ()  # why the entries may not compare
    best: dict[str, str] = field(default_factory=dict)  # by column the best entry, where it differs beyond chance
    left_out: tuple[tuple[str, str], ...] = ()  # folders not compared in part or as a whole, with the reason
    tests: tuple[PairedTest, ...] = ()
    budgets: tuple[Budget, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    metric_names: dict[str, str] = field(default_factory=dict)  # names of the metrics of curves and budgets, by key
    version: str = ""
    command: str = ""  # makes this comparison again
    notes: tuple[str, ...] = ()  # what else a reader must know, such as what could not be shown
    runs: tuple[RunMetrics, ...] = ()
