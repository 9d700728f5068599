"""A list file: one path of an image a line, relative to the folder of the file, with a label after a tab where there
is one. In UTF-8, or in any bytes; lines end with LF or CRLF. No image is opened.

Shapes: N images.
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mim.data.decoding.names import encoded, printable_name
from mim.data.sources.names import ImageFiles, Names

PARENT = ".."


@dataclass(frozen=True, slots=True, eq=False)
class ListFile:
    """The images that a list names, and their labels."""

    files: ImageFiles
    hash_N: np.ndarray  # uint32: CRC-32 of each path relative to the folder of the list
    written_N: np.ndarray  # int64: the label after the tab, as a position in `written`; -1 where there is none
    written: tuple[str, ...]
    folder_names: tuple[str, ...]  # the last part of each folder as the list writes it; empty where there is none


def read_list(file: Path, key: str) -> ListFile:
    """Reads a list. key: the config key that names it, for errors. Raises ValueError for a file of another kind."""
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if (position := content.find(b"\0")) >= 0:
        line_number = content.count(b"\n", 0, position) + 1
        raise ValueError(
            f"{key} {printable_name(file)} holds a zero byte in line {line_number:,}: name a folder of images, or a "
            "text file in UTF-8 with one path a line"
        )
    reader = _Reader(str(file.parent))
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        if line.strip():
            reader.add(line.removesuffix("\r"))
    return reader.result()


class _Reader:
    def __init__(self, parent: str):
        self.parent = parent
        self.written: dict[str, int] = {}
        self.row_of: dict[str, int] = {}  # of a folder as it is written, with a slash at its end
        self.folders, self.folder_names, self.starts = list[str](), list[str](), list[int | None]()
        self.images, self.sizes = bytearray(), list[int]()
        self.folder_rows, self.hashes, self.labels = list[int](), list[int](), list[int]()

    def add(self, line: str) -> None:
        path, _, label = line.partition("\t")
        if _is_unusual(path):
            path = str(Path(path))
            path = self.parent if path == os.curdir else path
        name = path[path.rfind(os.sep) + 1 :]
        folder = path[: len(path) - len(name)]
        row = self.row_of.get(folder)
        if row is None:
            row = self._add_folder(folder)
        content = encoded(name)
        self.images += content
        self.sizes.append(len(content))
        self.folder_rows.append(row)
        start = self.starts[row]
        if start is None or name in ("", PARENT):
            self.hashes.append(zlib.crc32(encoded(self._relative(os.path.join(self.folders[row], name)))))
        else:
            self.hashes.append(zlib.crc32(content, start))
        self.labels.append(self.written.setdefault(label, len(self.written)) if label else -1)

    def result(self) -> ListFile:
        return ListFile(
            ImageFiles(
                Names.of(self.folders),
                Names.of_bytes(self.images, self.sizes),
                np.array(self.folder_rows, np.int32),
            ),
            np.array(self.hashes, np.uint32),
            np.array(self.labels, np.int64),
            tuple(self.written),
            tuple(self.folder_names),
        )

    def _add_folder(self, folder: str) -> int:
        row = self.row_of[folder] = len(self.folders)
        name = os.path.basename(folder.rstrip(os.sep))
        absolute = os.path.join(self.parent, folder).rstrip(os.sep) or os.sep
        self.folders.append(absolute)
        self.folder_names.append("" if name == PARENT else name)
        relative = self._relative(absolute)
        if set(relative.split(os.sep)) <= {PARENT}:  # what it holds may have another name, as seen from the list
            self.starts.append(None)
        else:
            self.starts.append(zlib.crc32(encoded("" if relative == os.curdir else os.path.join(relative, ""))))
        return row

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.parent)


def _is_unusual(path: str) -> bool:
    """Whether pathlib may write it in another way."""
    return (
        os.sep != "/"
        or "//" in path
        or "/./" in path
        or path.startswith("./")
        or path.endswith(("/", "/.", PARENT))
        or path in ("", os.curdir)
    )
