"""CSV: the metrics of a run as a table that every spreadsheet opens."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mim.engine.trackers.base import RunProgress, TrackedRun, Tracker
from mim.io.files import append_text, write_text


class CSV(Tracker, name="csv"):
    """The file metrics.csv in the run folder: a row for each row of metrics.jsonl, a column for each metric.

    A metric that first appears later gets a new column, and the rows before it are empty there. A run that is resumed
    goes on from the step of its checkpoint.
    """

    def start(self, run: TrackedRun) -> str:
        self._path, self._columns = run.folder.table, ["step", "epoch", "images_seen", "seconds"]
        rows = self._read() if run.start.step else []
        self._write(row for row in rows if _is_up_to(row, run.start.step))
        return ""

    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        numbers = (progress.step, round(progress.epoch, 4), progress.images_seen, round(progress.seconds, 3))
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        row = {**dict(zip(self._columns, numbers, strict=False)), **finite}
        if new := [key for key in metrics if key not in self._columns]:
            rows = self._read()
            self._columns += new
            self._write([*rows, row])
        else:
            append_text(self._path, self._text([row]))

    def close(self, completed: bool) -> None:
        """Nothing is left to write."""

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file, whose columns are taken."""
        if not self._path.exists():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        self._columns = list(dict.fromkeys([*self._columns, *(reader.fieldnames or ())]))
        return rows

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self._path, self._text([dict(zip(self._columns, self._columns, strict=True)), *rows]))

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue()


def _is_up_to(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row is whole and no later than a step."""
    number = row.get("step") or ""
    return number.isdecimal() and int(number) <= step and None not in row.values()
