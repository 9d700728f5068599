"""RemoteFolder: a packed folder on an object store: small files whole, the images by position."""

import numpy as np

from mim.data.remote.files import PIECE_BYTES, REQUEST_BYTES, RemoteFiles, open_files, open_store
from mim.data.remote.store import RemoteFile
from mim.data.settings import DataSettings


class RemoteFolder:
    """The files of a packed data set at an address. Methods raise ValueError and DataLost as Store does.

    Args:
        url: of the folder.
        settings: of the data.
        cache_gib: DATA.cache_gib.
        cache: DATA.cache.
    """

    def __init__(self, url: str, settings: DataSettings, cache_gib: float, cache: str):
        self.url, self._settings, self._cache = url.rstrip("/"), settings, (cache_gib, cache)
        self._store = open_store(self.url, settings)

    def __str__(self) -> str:
        return self.url

    def text(self, name: str) -> str:
        """The content of a file of text."""
        file = self._file(name)
        return self._store.read(file.path, 0, file.size).decode("utf-8", "replace")

    def bytes(self, name: str) -> np.ndarray:
        """The content of a file, (bytes,) uint8: mapped from its copy, or in memory where there is no room for one."""
        file = self._file(name)
        path = open_files(self._store, [file], self._settings, *self._cache).copy(0) if file.size else None
        if path is not None:
            return np.memmap(path, np.uint8, mode="r")
        starts = range(0, file.size, REQUEST_BYTES)
        ranges = [(file.path, start, min(start + REQUEST_BYTES, file.size)) for start in starts]
        return np.frombuffer(b"".join(self._store.read_all(ranges)), np.uint8)

    def images(self, name: str) -> RemoteFiles:
        """A large file, in pieces."""
        return open_files(self._store, [self._file(name)], self._settings, *self._cache, piece_bytes=PIECE_BYTES)

    def _file(self, name: str) -> RemoteFile:
        return self._store.files([self._store.path(f"{self.url}/{name}")])[0]
