"""RemoteFiles: files of an object store, read by position: from copies of their pieces, else over the network.

A run reads images in random order, so it needs all pieces at once, and one that does not fit into the cache would go
and come for each image. So copies stay as long as the run, and of what has no copy the image alone is read. A thread of
each process copies the pieces that it misses, as long as there is room.
"""

import hashlib
import json
import math
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mim.data.remote.cache import GIB, Lease, PieceCache, State
from mim.data.remote.reader import Reader
from mim.data.remote.store import START_S, RemoteFile, Store, StoreError, is_remote, public
from mim.data.settings import DataSettings
from mim.data.sources.base import cache_folder
from mim.errors import DataLost

READ_AT: Any = getattr(os, "pread", None)  # none on Windows, where PieceCache says so
OPEN = 128  # pieces that a process keeps open
PIECE_BYTES = 64 * 2**20  # of a file that is cut into pieces
REQUEST_BYTES = 8 * 2**20  # of a piece, in one request
AT_ONCE = 4  # requests for one piece
PAUSE_S = 30.0  # without another try, after there was no room
TOUCH_S = 600.0  # after which an open piece is noted as used again


class Request(NamedTuple):
    """What is read of a file."""

    file: int  # its number
    offset: int  # in bytes
    size: int  # in bytes


class Piece(NamedTuple):
    """A part of a file, which is copied as a whole."""

    key: str
    path: str  # of the file, in the store
    start: int  # its first byte in the file
    stop: int  # the byte behind its last


def open_store(url: str, settings: DataSettings) -> Store:
    """The store of an address, which a start waits for a few seconds only."""
    return Store(url, min(settings.retry_s, START_S))


def find_files(
    key: str, addresses: Sequence[str], settings: DataSettings, ending: str, below: bool = False
) -> tuple[Store, list[RemoteFile]]:
    """The store and the files in it that addresses name, in order.

    Args:
        key: of the addresses, for messages.
        addresses: files, patterns with `*`, and folders, of one protocol.
        settings: of the data.
        ending: of the names of files that count in a folder.
        below: whether files in folders of a folder count.

    Raises ValueError where one is missing, there is none, or access is denied, and DataLost as Store does.
    """
    if len({address.partition("://")[0] if is_remote(address) else "" for address in addresses}) > 1:
        raise ValueError(f"{key}: all files must lie in one object store, or all on disks")
    store = open_store(addresses[0], settings)
    try:
        files = store.files([path for address in addresses for path in store.expand(address, ending, below)])
    except StoreError as error:
        raise ValueError(f"{key}: {error}") from error
    if not files:
        raise ValueError(f"{key} {public(addresses[0])}: there are no such {ending} files")
    return store, files


def open_files(
    store: Store,
    files: Sequence[RemoteFile],
    settings: DataSettings,
    cache_gib: float,
    cache: str,
    piece_bytes: int = 0,
) -> "RemoteFiles":
    """Files of a store behind the cache that DATA.cache_gib and DATA.cache name; from here on with DATA.retry_s.

    Raises ValueError where the cache cannot be used.
    """
    if not 0 <= cache_gib < math.inf:
        raise ValueError(f"DATA.cache_gib is {cache_gib}: it is a number of GiB, 0 for no copies")
    store.retry_s = settings.retry_s
    folder = Path(cache).absolute() if cache else cache_folder("remote")
    return RemoteFiles(store, PieceCache(folder, round(cache_gib * GIB)), files, piece_bytes)


class RemoteFiles:
    """Files of one store.

    Raises ValueError where the cache cannot be used.

    Args:
        store: which has the files.
        cache: for their pieces.
        files: of the store.
        piece_bytes: of each piece but the last of a file; 0 for whole files.
    """

    def __init__(self, store: Store, cache: PieceCache, files: Sequence[RemoteFile], piece_bytes: int = 0):
        self.store, self.cache, self.files, self.piece_bytes = store, cache, list(files), piece_bytes
        keys = [piece.key for number in range(len(files)) for piece in self.pieces(number)]
        self._lease: Lease | None = Lease(cache, keys)
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        names = ("store", "cache", "files", "piece_bytes")
        return {name: self.__dict__[name] for name in names} | {"_lease": None}  # the process that made it has one

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __del__(self) -> None:
        if hasattr(self, "_wanted"):
            self._wanted.end()
        for descriptor, _ in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def pieces(self, number: int) -> list[Piece]:
        """The pieces of a file, in order."""
        size = self.files[number].size
        return [self._piece(number, start) for start in range(0, size, self.piece_bytes or max(1, size))]

    def read(self, request: Request) -> bytes:
        """A part of a file. Raises ValueError and DataLost as Store does."""
        self._check_process()
        if (content := self._ahead.pop(request, None)) is not None:
            return content
        parts = self._parts(request)
        contents = [self._local(piece, start, stop) for piece, start, stop in parts]
        if None not in contents:
            return b"".join(content for content in contents if content is not None)
        for (piece, _, _), content in zip(parts, contents, strict=True):
            if content is None:
                self._wanted.put(piece)
        return self.store.read(self.files[request.file].path, request.offset, request.offset + request.size)

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Reads what has no copy, all at once, for the calls of `read` that follow; what was not read is dropped."""
        self._check_process()
        missing = [
            request
            for request in requests
            if any(self._descriptor(piece) is None for piece, _, _ in self._parts(request))
        ]
        ranges = [(self.files[file].path, offset, offset + size) for file, offset, size in missing]
        self._ahead.clear()
        if missing:
            self._ahead.update(zip(missing, self.store.read_all(ranges), strict=True))
        for request in missing:
            for piece, _, _ in self._parts(request):
                self._wanted.put(piece)

    def reader(self, number: int) -> Reader:
        """A file as a file object."""
        file = self.files[number]
        return Reader(lambda start, stop: self.read(Request(number, start, stop - start)), file.size)

    def copy(self, number: int) -> Path | None:
        """The copy of a file of one piece, fetched where it is not here; None where there is no room for it."""
        (piece,) = self.pieces(number)
        state = fetch(self.store, self.cache, piece, wait=True)
        return self.cache.folder / piece.key if state == "here" else None

    def _begin(self) -> None:
        self._process = os.getpid()
        self._open: dict[str, tuple[int, float]] = {}  # descriptor and when it was noted as used
        self._ahead: dict[Request, bytes] = {}
        self._wanted = _Wanted(self.store, self.cache)

    def _check_process(self) -> None:
        if self._process != os.getpid():  # a worker that was forked: threads stayed behind
            opened = self._open
            self._begin()
            self._open = opened  # reading at a position has no state

    def _piece(self, number: int, start: int) -> Piece:
        file = self.files[number]
        stop = min(start + self.piece_bytes, file.size) if self.piece_bytes else file.size
        name = json.dumps([file.url, file.path, file.version, file.size, start, stop])
        return Piece(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32], file.path, start, stop)

    def _parts(self, request: Request) -> list[tuple[Piece, int, int]]:
        """The pieces of a request, each with the first byte in it and the byte behind the last."""
        file, offset, size = request
        length = self.piece_bytes or max(1, self.files[file].size)
        parts = []
        for start in range(offset - offset % length, offset + size, length):
            piece = self._piece(file, start)
            parts.append((piece, max(offset - start, 0), min(offset + size, piece.stop) - start))
        return parts

    def _local(self, piece: Piece, start: int, stop: int) -> bytes | None:
        """A part of the copy of a piece; None where it has none."""
        descriptor = self._descriptor(piece)
        if descriptor is None:
            return None
        try:
            content = READ_AT(descriptor, stop - start, start)
        except OSError:  # the disk of the cache
            content = b""
        if len(content) == stop - start:
            return content
        os.close(self._open.pop(piece.key)[0])
        return None

    def _descriptor(self, piece: Piece) -> int | None:
        now = time.monotonic()
        descriptor, noted = self._open.get(piece.key, (None, 0.0))
        if descriptor is None:
            descriptor = self.cache.open(piece.key, piece.stop - piece.start)
            if descriptor is None:
                return None
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open)))[0])
        elif now - noted < TOUCH_S:
            return descriptor
        else:
            self.cache.touch(piece.key)
        self._open[piece.key] = descriptor, now
        return descriptor


class _Wanted:
    """The pieces that a process missed, which a thread copies one after the other."""

    def __init__(self, store: Store, cache: PieceCache):
        self._store, self._cache = store, cache
        self._queue: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._keys: set[str] = set()
        self._thread: threading.Thread | None = None
        self._rests_until = 0.0

    def put(self, piece: Piece) -> None:
        """Copies a piece later, once, if there is room."""
        if piece.key in self._keys or time.monotonic() < self._rests_until:
            return
        self._keys.add(piece.key)
        self._queue.put(piece)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="mim-copies")
            self._thread.start()

    def end(self) -> None:
        """Ends the thread after the piece that it copies now."""
        self._rests_until = math.inf
        self._queue.put(None)

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if time.monotonic() >= self._rests_until:
                try:
                    state = fetch(self._store, self._cache, piece, wait=False)
                except (ValueError, DataLost, RuntimeError):  # the reader meets it, too; or the process ends
                    state = "no room"
                if state == "no room":
                    self._rests_until = max(self._rests_until, time.monotonic() + PAUSE_S)
            self._keys.discard(piece.key)


def fetch(store: Store, cache: PieceCache, piece: Piece, wait: bool) -> State:
    """Copies a piece, as PieceCache.fetch says. Raises ValueError and DataLost as Store does."""

    def fill(file: BinaryIO) -> None:
        firsts = range(piece.start, piece.stop, REQUEST_BYTES)
        ranges = [(piece.path, first, min(first + REQUEST_BYTES, piece.stop)) for first in firsts]
        for group in range(0, len(ranges), AT_ONCE):
            for content in store.read_all(ranges[group : group + AT_ONCE]):
                file.write(content)

    return cache.fetch(piece.key, piece.stop - piece.start, fill, wait)
