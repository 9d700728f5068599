"""Tables with a row for each entry, as the page and the files for papers show them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mim.lab.comparison.result import Better, Column, Comparison, Section
from mim.lab.comparison.views.numbers import Cell, bounds_of, cells, styles_of


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading of a column."""

    title: str
    unit: str
    better: Better
    mark: int = 0  # number of its note, 0 where it has none


@dataclass(frozen=True, slots=True)
class EntryTable:
    """A table with a row for each entry."""

    headings: list[Heading]
    rows: list[tuple[Cell, ...]]
    notes: list[str] = field(default_factory=list)
    groups: list[tuple[str, int]] = field(default_factory=list)  # headings above headings, and how many each spans


def result_table(comparison: Comparison, *sections: Section) -> EntryTable | None:
    """The columns of some sections; None where no entry has a value in them."""
    return table_of(
        comparison, [column for section in sections for column in comparison.columns if column.section == section]
    )


def table_of(comparison: Comparison, columns: Sequence[Column]) -> EntryTable | None:
    """Some columns, without those in which no entry has a value; None where that leaves none."""
    styles = styles_of(columns, comparison.entries)
    headings, filled, notes = [], [], []
    for column in columns:
        estimates = [entry.metrics.get(column.key) for entry in comparison.entries]
        if not any(estimates):
            continue
        if column.note and column.note not in notes:
            notes.append(column.note)
        style = styles[column.key]
        mark = notes.index(column.note) + 1 if column.note else 0
        headings.append(Heading(column.title, style.unit, column.better, mark))
        bounds = bounds_of(column, comparison.entries)
        filled.append(cells(comparison.entries, estimates, style, comparison.best.get(column.key, ""), bounds))
    return EntryTable(headings, list(zip(*filled, strict=True)), notes) if headings else None
