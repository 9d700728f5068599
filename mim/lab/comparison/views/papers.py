"""The table of results as LaTeX and as Markdown, for a paper or a report."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap

from rich.text import Text

from mim.io.files import write_text
from mim.lab import console
from mim.lab.comparison.formatting import capital, on_one_line
from mim.lab.comparison.result import Comparison, Entry
from mim.lab.comparison.views.numbers import FIGURE_SPACE, Cell, heading_text
from mim.lab.comparison.views.tables import EntryTable, Heading, result_table
from mim.lab.comparison.views.terminal import HEADING, INTERVALS
from mim.lab.layout import TABLES

NAME = 20  # letters of an entry's name in a line
LINE = 50  # digits of \small that fit a column of a two-column paper, 3.2 inches
GAP = 2  # digits between two columns
LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # else the end of a row before them reads them
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{EN DASH}": r"\textendash{}",
    "\N{SUPERSCRIPT TWO}": r"\textsuperscript{2}",
    FIGURE_SPACE: r"\phantom{0}",
    "\N{REPLACEMENT CHARACTER}": "?",
}
MARKDOWN_SIGNS = {sign: f"\\{sign}" for sign in r"\`*_{}[]<>#|~$&"}
PREAMBLE = r"needs \usepackage[T1]{fontenc} and \usepackage{booktabs}"


def write_tables(comparison: Comparison, formats: Sequence[str], output: Path) -> None:
    """Writes the table of results to a folder, in each of some formats of mim.lab.layout.TABLES.

    Raises ValueError where no entry has an accuracy or a loss.
    """
    render = {"latex": latex, "markdown": markdown}
    for name in formats:
        write_text(output / TABLES[name], render[name](comparison))


def latex(comparison: Comparison) -> str:
    r"""A table environment that \input takes: a row for each entry, a column for each accuracy and loss.

    It is as wide as a column of a two-column paper. Columns that do not fit go below, with the names again. Raises
    ValueError where no entry has an accuracy or a loss.
    """
    table, columns, names = _columns(comparison)
    source = " ".join(filter(None, ("mim-toolkit", comparison.version, comparison.command and "with")))
    lines = [
        on_one_line(f"% Made by {source} {comparison.command}".rstrip()),
        f"% It {PREAMBLE}",
        r"\begin{table}",
        r"  \centering",
        r"  \small",
        r"  \setlength{\tabcolsep}{3pt}",
        f"  \\caption{{{_latex(_caption(comparison, table))}{_latex_notes(table)}}}",
        r"  \label{tab:comparison}",
    ]
    for part in _parts(columns, names):
        lines += _tabular(part, names)
    return "\n".join([*lines, r"\end{table}", ""])


def markdown(comparison: Comparison) -> str:
    """The same table as Markdown, with what its numbers are below. Raises ValueError where there are no numbers."""
    table, columns, names = _columns(comparison)
    rich = console.new_table(
        "Recipe", *(_escape(heading, MARKDOWN_SIGNS) + (f" ({mark})" if mark else "") for heading, mark, _ in columns)
    )
    for index, name in enumerate(names):
        texts = [_cell(cells[index], lambda text: f"**{text}**", MARKDOWN_SIGNS) for _, _, cells in columns]
        rich.add_row(Text(_escape(name, MARKDOWN_SIGNS)), *map(Text, texts))
    caption = _escape(_caption(comparison, table), MARKDOWN_SIGNS)
    notes = [f"{number}. {_escape(note, MARKDOWN_SIGNS)}" for number, note in enumerate(table.notes, 1)]
    return "\n\n".join(filter(None, [console.markdown(rich), caption, "\n".join(notes)])) + "\n"


_Column = tuple[str, int, list[Cell]]  # its heading, the number of its note, and a cell for each entry


def _columns(comparison: Comparison) -> tuple[EntryTable, list[_Column], list[str]]:
    """The table of results, its columns, and the names of the entries."""
    table = result_table(comparison, "accuracy", "loss")
    if table is None:
        raise ValueError("no run has an accuracy or a held-out loss, so there is no table to write: leave --format out")
    columns = [
        (_heading(heading), heading.mark, list(cells))
        for heading, cells in zip(table.headings, zip(*table.rows, strict=True), strict=True)
    ]
    if len({len(entry.seeds) for entry in comparison.entries}) > 1:
        columns.insert(0, ("Seeds", 0, [Cell(str(len(entry.seeds))) for entry in comparison.entries]))
    return table, columns, list(map(_name, comparison.entries))


def _heading(heading: Heading) -> str:
    return on_one_line(heading_text(capital(heading.title), heading.unit))


def _name(entry: Entry) -> str:
    return on_one_line(f"{entry.name} (random weights)" if entry.random else entry.name)


def _caption(comparison: Comparison, table: EntryTable) -> str:
    """What the numbers are, as the terminal says it."""
    seeds = {len(entry.seeds) for entry in comparison.entries}
    if max(seeds, default=0) < 2:
        return ""
    text = INTERVALS if len(seeds) > 1 else INTERVALS.replace("over seeds", f"over {next(iter(seeds))} seeds")
    if not any(cell.best for row in table.rows for cell in row):
        text = text.partition(";")[0]
    return f"{capital(text)}."


def _cell(cell: Cell, bold: Callable[[str], str], signs: dict[str, str]) -> str:
    text = _escape(cell.text, signs)
    runs = f"(n = {cell.runs})" if cell.runs is not None else ""
    return " ".join(filter(None, (bold(text) if cell.best else text, _escape(cell.half, signs), runs)))


def _escape(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(letter, letter) for letter in text)


def _latex(text: str) -> str:
    return re.sub("-(?=-)", "-{}", _escape(text, LATEX_SIGNS))  # two hyphens would be a dash


def _latex_notes(table: EntryTable) -> str:
    notes = [f" \\textsuperscript{{{number}}}~{_latex(capital(note))}." for number, note in enumerate(table.notes, 1)]
    return "".join(notes)


def _parts(columns: list[_Column], names: list[str]) -> list[list[_Column]]:
    """The columns in as many parts as the width needs."""
    first = max(len(line) for name in ["Recipe", *names] for line in _lines(name, NAME))
    parts: list[list[_Column]] = []
    room = 0
    for column in columns:
        heading, _, cells = column
        widest = max(len(line) for line in _lines(heading, HEADING))
        width = GAP + max(widest, *(len(_cell(cell, str, {})) for cell in cells))
        if not parts or width > room:
            parts.append([])
            room = LINE - first
        parts[-1].append(column)
        room -= width
    return parts


def _tabular(columns: list[_Column], names: list[str]) -> list[str]:
    headings = ["Recipe"]
    for heading, mark, _ in columns:
        note = f"\\textsuperscript{{{mark}}}" if mark else ""
        headings.append(_stack(_lines(heading, HEADING), "b", "r", note))
    rows = []
    for index, name in enumerate(names):
        texts = [_cell(cells[index], lambda text: f"\\textbf{{{text}}}", LATEX_SIGNS) for _, _, cells in columns]
        rows.append([_stack(_lines(name, NAME), "t", "l"), *texts])
    return [
        f"  \\begin{{tabular}}{{@{{}}l{'r' * len(columns)}@{{}}}}",
        r"    \toprule",
        f"    {' & '.join(headings)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}\par\medskip",
    ]


def _stack(lines: list[str], position: str, side: str, after: str = "") -> str:
    """Lines one below the other in a cell, each escaped; `after` is LaTeX."""
    texts = list(map(_latex, lines))
    if len(texts) == 1:
        return texts[0] + after
    rows = r" \\ ".join(texts)
    return f"\\begin{{tabular}}[{position}]{{@{{}}{side}@{{}}}}{rows}{after}\\end{{tabular}}"


def _lines(text: str, width: int) -> list[str]:
    return wrap(text, width) or [text]
