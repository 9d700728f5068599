"""ParquetColumn: the values of a column of Parquet files, of which only the row group that holds a row is read.

Nothing open is handed to another process: a dataloader worker opens the files again.
"""

import json
import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import printable_name
from mim.data.remote.files import RemoteFiles
from mim.data.remote.reader import Reader
from mim.data.remote.store import StoreError
from mim.errors import DataLost
from mim.io.formatting import printable
from mim.registry import one_of

ENDING = ".parquet"
OPEN = 16  # files that a process keeps open
MOST_KEPT = 2**26  # bytes of a row group that a process keeps, so that rows in order read it once
STREAMED = 16  # rows that are read at once of a larger one


def open_parquet(path: Path | str | Reader) -> Any:
    """The file, opened to be read in any order. Raises OSError, or an error of pyarrow, where it cannot be."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, memory_map=False)  # reading what is missing of a mapped file would end this process


def find_parquet(key: str, value: str) -> list[Path]:
    """The files that the value of a key names, sorted: a file, those in a folder and below, or those of a pattern.

    Raises ValueError where there are none.
    """
    if not value:
        raise ValueError(
            f"{key} is empty: name a {ENDING} file, a folder of them, or a pattern such as train-*{ENDING}"
        )
    root = Path(value)
    if root.is_dir():
        paths = [path for path in root.rglob(f"*{ENDING}") if not _is_hidden(path.relative_to(root))]
    else:
        paths = [root] if root.is_file() else [Path(name) for name in glob(value)]
    if not paths:
        raise ValueError(f"{key} {printable_name(value)}: there is no such {ENDING} file, and no folder with one")
    return sorted(path.absolute() for path in paths)


class ParquetColumn:
    """The images of one column, as encoded bytes, one file after the other.

    Attributes: counts, the rows of each file, (files,) int64; largest, the bytes of the column in its largest row
    group.

    Args:
        paths: the files; all have the column.
        column: of binary values, or of structs with a field `bytes`, as the package datasets writes them.
        key: names the paths in messages.
        remote: the files, where they lie on an object store; paths are their addresses then.

    Raises ValueError where the package pyarrow is missing, a file cannot be read, or it has no such column.
    """

    def __init__(self, paths: Sequence[Path] | Sequence[str], column: str, key: str, remote: RemoteFiles | None = None):
        self.paths, self.column, self._key, self.remote = [*paths], column, key, remote
        self._opened: tuple[int, dict[int, Any]] = os.getpid(), {}
        self._kept: tuple[tuple[int, int], Any] | None = None  # the last row group, with the numbers of file and group
        self._ends: list[np.ndarray] = []  # of each file: where its row groups end
        self.largest = 0
        for number, path in enumerate(self.paths):
            file = self._named(path, number)
            if file.metadata.num_rows:  # a column of no values may have no type
                _check_column(file.schema_arrow, column, f"{key} {printable_name(path)}")
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            self.largest = max([self.largest, *(_size(group, column) for group in groups)])
            self._ends.append(np.cumsum([0, *(group.num_rows for group in groups)], dtype=np.int64)[1:])
        self.counts = np.array([ends[-1] if len(ends) else 0 for ends in self._ends], np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (0, {}), "_kept": None}

    def value(self, number: int, row: int) -> bytes:
        """The bytes of an image. Raises BrokenImage where there are none, or the file cannot be read.

        Args:
            number: of the file.
            row: in it.
        """
        group = int(np.searchsorted(self._ends[number], row, side="right"))
        before = int(self._ends[number][group - 1]) if group else 0
        try:
            if self.remote is None:
                os.stat(self.paths[number])  # an error of pyarrow has no number: lost storage, or damage?
            value = self._row(number, group, row - before)
        except (DataLost, StoreError):
            raise
        except Exception as error:  # those of pyarrow have no type in common
            self._opened, self._kept = (0, {}), None  # storage that comes back is opened again
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            only = ", but the path of a file" if isinstance(value, dict) and value.get("path") else ""
            raise BrokenImage(f"the row holds no bytes of an image{only}")
        return content

    def labels(self, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The values of another column in all files, and the names of classes that the package datasets wrote there.

        Raises ValueError where a file has no such column, or it cannot be read.
        """
        parts, names = list[np.ndarray](), tuple[str, ...]()
        for number, path in enumerate(self.paths):
            file = self._named(path, number)
            if column not in file.schema_arrow.names:
                raise ValueError(
                    f"DATA.label_column {column} is no column of {printable_name(path)}: "
                    f"{one_of(column, file.schema_arrow.names)}, or '' for no labels"
                )
            names = names or _class_names(file.schema_arrow, column)
            parts.append(file.read(columns=[column], use_threads=False).column(0).to_numpy())
        return np.concatenate(parts), names

    def _row(self, number: int, group: int, row: int) -> Any:
        if self._kept is not None and self._kept[0] == (number, group):
            return self._kept[1][row].as_py()
        file = self._file(number)
        if _size(file.metadata.row_group(group), self.column) <= MOST_KEPT:
            values = file.read_row_group(group, columns=[self.column], use_threads=False).column(0)
            self._kept = (number, group), values
            return values[row].as_py()
        batches = file.iter_batches(STREAMED, row_groups=[group], columns=[self.column], use_threads=False)
        for _ in range(row // STREAMED):
            next(batches)
        return next(batches).column(0)[row % STREAMED].as_py()

    def _file(self, number: int) -> Any:
        """The file, opened by this process."""
        pid, files = self._opened
        if pid != os.getpid():
            self._opened = os.getpid(), (files := {})
            self._kept = None
        if number not in files:
            if len(files) >= OPEN:
                files.pop(next(iter(files))).close()
            files[number] = open_parquet(self.paths[number] if self.remote is None else self.remote.reader(number))
        return files[number]

    def _named(self, path: Path | str, number: int) -> Any:
        """The file. Raises ValueError, which names it, where it cannot be opened."""
        try:
            return self._file(number)
        except ImportError as error:
            raise ValueError("Parquet is read by the package pyarrow: pip install 'mim-toolkit[parquet]'") from error
        except (DataLost, StoreError):
            raise
        except Exception as error:  # those of pyarrow have no type in common
            raise ValueError(
                f"{self._key} {printable_name(path)} cannot be read as Parquet ({printable(str(error))}): copy it "
                "again, or leave it out"
            ) from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _size(group: Any, column: str) -> int:
    """The decoded bytes of a column in a row group."""
    parts = [group.column(number) for number in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _check_column(schema: Any, column: str, named: str) -> None:
    """Raises ValueError where there is no such column, or it holds no bytes."""
    from pyarrow import types

    if column not in schema.names:
        raise ValueError(f"DATA.image_column {column} is no column of {named}: {one_of(column, schema.names)}")
    kind = schema.field(column).type
    inner = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (types.is_binary(inner) or types.is_large_binary(inner)):
        raise ValueError(
            f"DATA.image_column {column} of {named} holds {kind}: encoded images are read, as binary values or as "
            "structs with a field bytes"
        )


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """The names of classes, where the package datasets wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
