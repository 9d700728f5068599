"""Tables: a comparison as CSV files."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from mim.io.files import write_text
from mim.lab.comparison.result import Column, Comparison
from mim.ops.intervals import Estimate


def write_csv(comparison: Comparison, output: Path) -> tuple[Path, Path]:
    """comparison.csv, a row an entry with mean, half interval and count of every column, and comparison_runs.csv, a
    row a run. Units stand in the headings.
    """
    entries, runs = output / "comparison.csv", output / "comparison_runs.csv"
    columns = comparison.columns
    parts = ("mean", "95% interval +-", "runs")
    heads = [f"{_heading(column)}: {part}" for column in columns for part in parts]
    rows = [
        [
            *(entry.name, entry.method, " ".join(map(str, entry.seeds)), "; ".join(entry.folders)),
            *(cell for column in columns for cell in _cells(entry.figures.get(column.key))),
        ]
        for entry in comparison.entries
    ]
    _write(entries, ["entry", "method", "seeds", "folders", *heads], rows)
    single = [
        [run.entry, run.seed, run.folder, *(_text(run.figures.get(column.key)) for column in columns)]
        for run in comparison.runs
    ]
    _write(runs, ["entry", "seed", "folder", *map(_heading, columns)], single)
    return entries, runs


def _heading(column: Column) -> str:
    return f"{column.title} [{column.unit}]" if column.unit else column.title


def _cells(estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "", "", "0"
    return _text(estimate.mean), _text(estimate.half), str(estimate.runs)


def _text(value: float | None) -> str:
    """All the digits that a number has; a count without a point."""
    if value is None:
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _write(path: Path, head: list[str], rows: Iterable[list]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, text.getvalue().encode("utf-8", "replace").decode("utf-8"))  # as names of files may not be text
