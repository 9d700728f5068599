"""Table: the columns of a CSV, TSV or Parquet file as texts, with the line of each row for messages."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim.data.decoding.names import printable_name
from mim.data.labels.settings import LabelSettings
from mim.io.formatting import list_names, printable
from mim.registry import one_of

TEXT, PARQUET = (".csv", ".tsv", ".tab", ".txt"), (".parquet", ".pq")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
Row = tuple[int, list[str]]  # its line, from 1, and its cells


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The columns of a file, each a list of texts without blanks around them; an empty text is a missing value."""

    name: str  # of the file
    columns: dict[str, list[str]]
    lines: Sequence[int]  # the line of each row, or its number from 1
    unit: str = "line"  # what `lines` counts

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, key: str, name: str) -> list[str]:
        """A column that a config key names. Raises ValueError, with the columns there are, where it is missing."""
        if name not in self.columns:
            raise ValueError(f"{key} {printable(name)} is no column of {self.name}: {one_of(name, self.columns)}")
        return self.columns[name]

    def where(self, row: int) -> str:
        """The file and the line of a row."""
        return f"{self.name} {self.unit} {self.lines[row]:,}"


def read_table(settings: LabelSettings) -> Table:
    """The table of LABELS.file.

    Raises ValueError where it does not exist, has an unknown ending or another encoding, has no rows, or rows of
    different lengths; and where it is Parquet and pyarrow is missing.
    """
    file = Path(settings.file)
    name = printable_name(file)
    if not file.is_file():
        raise ValueError(f"LABELS.file {name} {'is a folder' if file.is_dir() else 'does not exist'}: name a table")
    ending = file.suffix.lower()
    if ending in PARQUET:
        table = _of_parquet(file, name)
    elif ending in TEXT:
        table = _of_text(file, name, settings)
    else:
        raise ValueError(
            f"LABELS.file {name} ends with {ending or 'nothing'}: {', '.join((*TEXT, *PARQUET))} are read; save a "
            "spreadsheet as CSV"
        )
    if not len(table):
        raise ValueError(f"LABELS.file {name} has no rows: it needs a row for each image")
    return table


def _of_text(file: Path, name: str, settings: LabelSettings) -> Table:
    text = _decoded(file.read_bytes(), name, settings.encoding)
    rows = _rows(text, name, _delimiter(text, file.suffix.lower(), settings.delimiter))
    header = list(settings.header)
    if not header:
        header = next(rows, (0, []))[1]
    if len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise ValueError(f"LABELS.file {name} has two columns {printable(twice)!r}: give each a name of its own")
    cells, lines = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{name} line {line:,} has {len(row)} values, and there are {len(header)} columns, "
                f"{list_names(header)}: put a value with the delimiter in it in quotes, or set LABELS.delimiter; a "
                "file without names of columns in its first line needs LABELS.header"
            )
        cells.append(row)
        lines.append(line)
    columns = zip(*cells, strict=True) if cells else [() for _ in header]
    return Table(name, {key: list(column) for key, column in zip(header, columns, strict=True)}, lines)


def _decoded(content: bytes, name: str, encoding: str) -> str:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except LookupError as error:
        raise ValueError(f"LABELS.encoding {encoding} is unknown: use utf-8, utf-16, cp1252 or latin-1") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"LABELS.file {name} is not in {encoding.removesuffix('-sig')}: byte 0x{content[error.start]:02x} in line "
            f"{line:,}. Save it as UTF-8, or name its encoding, such as LABELS.encoding cp1252 (Windows, western "
            "Europe), latin-1 or utf-16"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"LABELS.file {name} holds a zero byte: it is no text, or in UTF-16; then set LABELS.encoding utf-16-le"
        )
    return text


def _delimiter(text: str, ending: str, choice: str) -> str:
    """What stands between columns; a blank stands for any number of blanks."""
    if choice == "space":
        return " "
    if choice != "auto":
        return DELIMITERS[choice]
    if ending in (".tsv", ".tab"):
        return "\t"
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(DELIMITERS.values(), key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))


def _rows(text: str, name: str, delimiter: str) -> Iterator[Row]:
    """The rows of a text that are not blank."""
    if delimiter == " ":
        for line, content in enumerate(text.splitlines(), 1):
            if cells := content.split():
                yield line, cells
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"LABELS.file {name} line {reader.line_num:,} cannot be read: {error}") from error


def _of_parquet(file: Path, name: str) -> Table:
    try:
        import pyarrow as pa  # only this format needs the package
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"LABELS.file {name} needs the package pyarrow ({error}): pip install 'mim-toolkit[huggingface]', or save "
            "the table as CSV"
        ) from error
    try:
        content = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"LABELS.file {name} cannot be read as Parquet: {printable(str(error))}") from error
    columns = {key: [_text(value) for value in content.column(key).to_pylist()] for key in content.column_names}
    return Table(name, columns, range(1, content.num_rows + 1), "row")


def _text(value: Any) -> str:
    """A value of Parquet as a CSV file would hold it; a list of names with bars between them."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(map(_text, value))
    return str(value).strip()
