"""A comparison as CSV files."""

import csv
import io
from pathlib import Path

from mim.io.files import write_text
from mim.lab.comparison.result import Comparison
from mim.lab.layout import ENTRIES, RUNS
from mim.ops.intervals import Estimate


def write_csv(comparison: Comparison, output: Path) -> None:
    """Writes a file with a row for each entry (mean, half interval, count), and one with a row for each run."""
    columns = comparison.columns
    headings = [f"{column.title} [{column.unit}]" if column.unit else column.title for column in columns]
    parts = [f"{heading}: {part}" for heading in headings for part in ("mean", "95% interval +-", "runs")]
    rows = [["entry", "method", "seeds", "folders", *parts]]
    for entry in comparison.entries:
        cells = [cell for column in columns for cell in _cells(entry.metrics.get(column.key))]
        rows.append([entry.name, entry.method, " ".join(map(str, entry.seeds)), "; ".join(entry.folders), *cells])
    _write(output / ENTRIES, rows)
    rows = [["entry", "seed", "folder", *headings]]
    for run in comparison.runs:
        rows.append([run.entry, str(run.seed), run.folder, *(_text(run.metrics.get(column.key)) for column in columns)])
    _write(output / RUNS, rows)


def _cells(estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "", "", "0"
    return _text(estimate.mean), _text(estimate.half), str(estimate.runs)


def _text(value: float | None) -> str:
    """All the digits of a number; a count without a point."""
    if value is None:
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _write(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue().encode("utf-8", "replace").decode("utf-8"))  # names of files may not be text
