"""Names: many texts in one buffer, so that a list of a million files is three arrays and no Python object a file.

A Python object holds a count of its references, and a loader process that touches it copies its page of memory. Arrays
stay shared. Shapes: N texts, B bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np

from mim.data.decoding.names import encoded


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Texts in one buffer. A text may hold any bytes, as names of files do."""

    bytes_B: np.ndarray  # uint8: all texts, one after the other
    end_N: np.ndarray  # int64: the end of each in bytes_B

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Names":
        """From texts."""
        parts = list(map(encoded, texts))
        return cls.of_bytes(b"".join(parts), map(len, parts))

    @classmethod
    def of_bytes(cls, content: bytes | bytearray, sizes: Iterable[int]) -> "Names":
        """From all texts, one after the other, and the number of bytes of each."""
        return cls(np.frombuffer(bytes(content), np.uint8), np.fromiter(accumulate(sizes), np.int64))

    def __len__(self) -> int:
        return len(self.end_N)

    def __getitem__(self, index: int) -> str:
        return self.content(index, index + 1).decode("utf-8", "surrogateescape")

    def content(self, start: int, stop: int) -> bytes:
        """The bytes of some texts, one after the other."""
        first, last = (int(self.end_N[index - 1]) if index else 0 for index in (start, stop))
        return self.bytes_B[first:last].tobytes()

    def sizes(self) -> np.ndarray:
        """The number of bytes of each text."""
        return np.diff(self.end_N, prepend=0)

    def are_whole(self) -> bool:
        """Whether the ends fit the buffer."""
        last = int(self.end_N[-1]) if len(self) else 0
        return last == len(self.bytes_B) and bool((self.sizes() >= 0).all())


@dataclass(frozen=True, slots=True, eq=False)
class ImageFiles:
    """Files of images; the name of a folder is there once."""

    folders: Names  # absolute paths
    names: Names
    folder_N: np.ndarray  # int32: the folder of each file

    def path(self, row: int) -> Path:
        """The absolute path of a file."""
        return Path(self.folders[int(self.folder_N[row])], self.names[row])


class Paths(Sequence[Path]):
    """Some of the files, in order, as a list of paths that makes each path where it is asked for."""

    def __init__(self, files: ImageFiles, rows: np.ndarray):
        self.files, self.rows = files, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "Paths": ...
    def __getitem__(self, index: int | slice) -> "Path | Paths":
        if isinstance(index, slice):
            return Paths(self.files, self.rows[index])
        return self.files.path(int(self.rows[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as of a list
