"""Comparison: what a table, a CSV file and a page show of several runs, as plain values."""

from dataclasses import dataclass, field
from typing import Literal

from mim.ops.intervals import Estimate, Paired

Axis = Literal["images_seen", "flops", "seconds"]
Section = Literal["accuracy", "loss", "cost"]
Better = Literal["higher", "lower", "neither"]
Role = Literal["method", "fairness", "other"]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric that entries have.

    note: what a reader must know about it, such as that losses of different targets do not compare.
    """

    key: str
    title: str
    unit: str
    section: Section
    better: Better
    note: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe over its seeds.

    Args:
        method: the recipe in one line.
        metrics: by key of the column, in the unit of the column; absent where no run has the metric.
        values: the value of each run behind a metric, in the order of the seeds.
    """

    name: str
    method: str
    seeds: tuple[int, ...]
    folders: tuple[str, ...]
    metrics: dict[str, Estimate]
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of one run during training.

    Args:
        at: the position of each value on each axis that is known.
        values: of the metric, in percent where it is an accuracy.
    """

    entry: str
    seed: int
    metric: str
    at: dict[Axis, tuple[float, ...]]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """A config key in which entries differ.

    role: `method` for what the method decides, `fairness` for what should be equal in a fair comparison, `other`.
    """

    key: str
    role: Role
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
    """A metric of each entry within a budget.

    Args:
        limit: in images, FLOPs or seconds.
        estimates: by name of the entry, in percent where the metric is an accuracy.
    """

    axis: Axis
    limit: float
    metric: str
    estimates: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A picture with a caption. png: the content of the file; alt: the text for those who cannot see the picture."""

    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """The metrics of one run of an entry, and of what started from it, in the units of their columns."""

    entry: str
    seed: int
    folder: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is shown.

    Args:
        created: date and time in ISO 8601.
        left_out: folders that are not compared in part or as a whole, each with the reason.
        metric_names: names of the metrics of curves and budgets, by key.
        command: makes this comparison again.
        notes: what else a reader must know, such as what could not be shown.
    """

    title: str
    created: str
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    curves: tuple[Curve, ...] = ()
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    tests: tuple[PairedTest, ...] = ()
    budgets: tuple[Budget, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    metric_names: dict[str, str] = field(default_factory=dict)
    version: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[RunMetrics, ...] = ()
