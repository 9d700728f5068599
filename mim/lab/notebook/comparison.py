"""ComparedRuns: a comparison of runs as a notebook shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mim.engine.log import log_to_console
from mim.lab.comparison import compare as compare_runs
from mim.lab.comparison import write
from mim.lab.comparison.result import Comparison, Section
from mim.lab.comparison.views.numbers import FIGURE_SPACE, Cell, heading_text
from mim.lab.comparison.views.tables import result_table
from mim.results import Card, CardPicture, CardTable

SECTIONS: tuple[tuple[Section, ...], ...] = (("accuracy", "loss"), ("cost",))
INTERVALS = "Mean, with its 95% interval over seeds; bold: the best beyond chance."
SHEETS = 2  # pictures in a notebook; the page has all


@dataclass(frozen=True, slots=True, repr=False)
class ComparedRuns(Comparison):
    """What `mim.compare` returns: a comparison that a notebook shows as tables, with its warnings."""

    def write(self, output: str | Path, tables: Sequence[str] = (), *, figures: bool = True) -> Path:
        """Writes the page and CSV files to a folder, as `mim-compare`, and returns the path of the page.

        tables: formats in which the table of results is written, too: `latex`, `markdown`. figures: also write each
        chart as SVG, PDF, PNG and CSV, in about a second each. Raises ValueError where the folder is a file, and for
        another format.
        """
        return write(self, Path(output), tables, figures=figures)

    def __repr__(self) -> str:
        runs = sum(len(entry.folders) for entry in self.entries)
        warnings = len(self.evidence) + len(self.warnings)
        texts = [_count(len(self.entries), "entry", "entries"), _count(runs, "run", "runs")]
        if warnings:
            texts.append(_count(warnings, "warning", "warnings"))
        return f"<{type(self).__name__} {self.title}: {', '.join(texts)}>"

    def _repr_html_(self) -> str:
        tables = filter(None, (self._table(sections, first=sections is SECTIONS[0]) for sections in SECTIONS))
        left_out = [f"Left out: {folder}: {reason}" for folder, reason in self.left_out]
        several = any(len(entry.seeds) > 1 for entry in self.entries)
        column_notes = dict.fromkeys(f"{each.title}: {each.note}" for each in self.columns if each.note)
        card = Card(
            title=self.title,
            warnings=(*self.evidence, *self.warnings),
            tables=tuple(tables),
            pictures=tuple(CardPicture(f"{each.title}: {each.caption}", each.png) for each in self.sheets[:SHEETS]),
            notes=(*([INTERVALS] if several else []), *column_notes, *self.notes, *left_out),
        )
        return card.html()

    def _table(self, sections: tuple[Section, ...], first: bool) -> CardTable | None:
        """A row for each entry; the first table has the seeds, too. None where no entry has such a metric."""
        table = result_table(self, *sections)
        if table is None:
            return None
        seeds = ["seeds"] if first else []
        headings = ("", *seeds, *(heading_text(each.title, each.unit) for each in table.headings))
        rows = tuple(
            (entry.name, *([str(len(entry.seeds))] if first else []), *map(_text, cells))
            for entry, cells in zip(self.entries, table.rows, strict=True)
        )
        start = 1 + len(seeds)
        bold = {
            (row, start + column)
            for row, cells in enumerate(table.rows)
            for column, cell in enumerate(cells)
            if cell.best
        }
        return CardTable(rows, headings, frozenset(bold))


def compare(
    runs: str | Path | Sequence[str | Path],
    *,
    title: str = "",
    reconstructions: bool = True,
    search: bool = True,
    output: str | Path | None = None,
) -> ComparedRuns:
    """Compares pretraining runs, and the probes and fine-tunings that came from them.

    Args:
        runs: run folders, or folders that hold run folders at any depth, such as the output of a study.
        title: by default the names of the entries.
        reconstructions: also draw held-out images as each entry predicts them, which builds every model.
        search: also look for probes and fine-tunings beside the runs; their folders record where they came from.
        output: a folder into which the page and the CSV files are written, too; `write` of the result also writes
            figures for papers there.

    Raises ValueError where a path does not exist, and where no run is left.
    """
    log_to_console(False)  # configs are read again; their warnings were shown when they ran
    paths = [runs] if isinstance(runs, (str, Path)) else runs
    comparison = compare_runs(paths, title=title, reconstructions=reconstructions, search=search)
    result = ComparedRuns(**{field.name: getattr(comparison, field.name) for field in fields(comparison)})
    if output is not None:
        result.write(output, figures=False)
    return result


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _text(cell: Cell) -> str:
    runs = f" ({cell.runs})" if cell.runs is not None else ""
    return f"{cell.text} {cell.half.strip(FIGURE_SPACE)}".strip() + runs
