"""Tar shards on an object store: their indices, for which each is read once."""

import io
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mim.data.remote.files import RemoteFiles
from mim.data.remote.store import RemoteFile, Store
from mim.data.sources.shards import Labels, ShardIndex, index_opened

SHARDS = 8  # that are read at once
AHEAD_BYTES = 2**20  # of a shard without a copy, in one request


def index_remote(files: RemoteFiles, labels: Labels, json_key: str) -> list[ShardIndex]:
    """The images of each shard, from the cache of indices where they are there already.

    A shard that is read for its index is copied, where there is room.

    Raises ValueError where a shard is damaged, or a label is no number, and as Store does.
    """
    with ThreadPoolExecutor(SHARDS) as threads:
        return list(threads.map(lambda number: _index(files, number, labels, json_key), range(len(files.files))))


def base_name(url: str) -> str:
    """The name of a shard without its folder: the same as on a disk, so that the same images are held out."""
    return posixpath.basename(urlsplit(url).path)


def _index(files: RemoteFiles, number: int, labels: Labels, json_key: str) -> ShardIndex:
    file = files.files[number]

    def read() -> BinaryIO:
        path = files.copy(number)
        return path.open("rb") if path else io.BufferedReader(_Stream(files.store, file), AHEAD_BYTES)

    identity: Sequence[Any] = (file.url, file.size, file.version)
    return index_opened(file.url, base_name(file.url), identity, read, labels, json_key)


class _Stream(io.RawIOBase):
    """A file of a store, read from its beginning to its end with few steps back."""

    def __init__(self, store: Store, file: RemoteFile):
        self._store, self._file, self._position = store, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._file.size)
        count = max(stop - self._position, 0)
        if count:
            buffer[:count] = self._store.read(self._file.path, self._position, stop)
        self._position += count
        return count
