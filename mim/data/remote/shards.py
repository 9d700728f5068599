"""Tar shards on an object store: their indices, for which each is read once."""

import io
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO

from mim.data.remote.files import RemoteFiles
from mim.data.remote.reader import Reader
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
    return posixpath.basename(url)


def _index(files: RemoteFiles, number: int, labels: Labels, json_key: str) -> ShardIndex:
    file = files.files[number]

    def read() -> BinaryIO:
        path = files.copy(number)
        if path is not None:
            return path.open("rb")
        return io.BufferedReader(Reader(partial(files.store.read, file.path), file.size), AHEAD_BYTES)

    identity: Sequence[Any] = (file.url, file.path, file.size, file.version)
    return index_opened(file.url, base_name(file.url), identity, read, labels, json_key)
