"""PieceCache: a folder of copies of pieces of files on object stores, bounded in size, for all processes of a machine.

A piece appears whole under its key and never changes. Beside the pieces lie `lock` (held while pieces are counted, room
is made or a fetch ends), `<key>.fetch` (held by the process that fetches a piece, as large as the piece will be) and
`<name>.lease` (held by a run, with the keys that it reads). The system ends the locks of a process that is killed.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from mim.data.decoding.images import READ_FLAGS
from mim.data.decoding.names import printable_name
from mim.io.files import PARTIAL, remove_abandoned, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOG = logging.getLogger("mim")

LOCK, FETCH, LEASE = "lock", ".fetch", ".lease"
GIB = 2**30
State = Literal["here", "no room", "underway"]  # of a piece; the last where another process fetches it


class PieceCache:
    """Pieces by key.

    Args:
        folder: on a disk of this machine; it is made where it is missing.
        limit: bytes of all pieces together, those that are being fetched included.

    Raises ValueError where the folder cannot be used: its file system, or the system, has no file locks.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        if fcntl is None:
            raise ValueError("data sets on object stores need file locks, which this system lacks: copy them to a disk")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise ValueError(
                f"DATA.cache {printable_name(folder)} cannot hold copies ({error.strerror or error}): name a folder on "
                "a disk of this machine"
            ) from error

    def open(self, key: str, size: int) -> int | None:
        """A descriptor of a piece, which counts as used now; None where it is not here. A damaged one is removed."""
        path = self.folder / key
        try:
            descriptor = os.open(path, READ_FLAGS)
        except OSError:
            return None
        if os.fstat(descriptor).st_size == size:
            self.touch(key)
            return descriptor
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None

    def touch(self, key: str) -> None:
        """Notes that a piece is used now."""
        with suppress(OSError):
            os.utime(self.folder / key)

    def fetch(self, key: str, size: int, fill: Callable[[BinaryIO], None], wait: bool) -> State:
        """Sees that a piece is here; `fill` writes it where it was not.

        Args:
            key: of the piece.
            size: of the piece, in bytes.
            fill: writes these bytes.
            wait: for another process that fetches the piece.

        Returns `no room` also where the disk is full: an OSError, of which `fill` raises no other.
        """
        with _lock(self.folder / f"{key}{FETCH}", wait) as descriptor:
            if descriptor is None:
                return "underway"
            try:
                return "here" if self._is_here(key, size) or self._fetch(descriptor, key, size, fill) else "no room"
            finally:
                with self._locked():  # else a process that counts could see neither this file nor the piece
                    (self.folder / f"{key}{FETCH}").unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of the pieces that are here, or are being fetched."""
        with self._locked():
            pieces, reserved = self._contents()
        return sum(size for _, _, size in pieces) + reserved

    def _is_here(self, key: str, size: int) -> bool:
        descriptor = self.open(key, size)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _fetch(self, descriptor: int, key: str, size: int, fill: Callable[[BinaryIO], None]) -> bool:
        with self._locked():
            if not self._make_room(size):
                return False
            os.ftruncate(descriptor, size)  # takes no blocks
        try:
            write_atomically(self.folder / key, fill)
        except OSError as error:
            LOG.warning("DATA.cache: %s; what is not copied is read from the store each time", error)
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Whether there is room for a piece, of which pieces are removed that no run reads, oldest use first."""
        pieces, reserved = self._contents()
        leased, free = self._leased(), shutil.disk_usage(self.folder).free
        surplus = sum(size for _, _, size in pieces) + reserved + size - self.limit
        idle = sorted(piece for piece in pieces if piece[1] not in leased)
        needed = max(surplus, size - free)
        if needed > sum(size for _, _, size in idle):
            return False
        for _, key, piece_size in idle:
            if needed <= 0:
                break
            (self.folder / key).unlink(missing_ok=True)
            needed -= piece_size
        return True

    def _contents(self) -> tuple[list[tuple[int, str, int]], int]:
        """When each piece was used, its key and its size; and the bytes that are being fetched."""
        remove_abandoned(self.folder)
        pieces: dict[str, tuple[int, str, int]] = {}
        reserved: dict[str, int] = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name == LOCK or entry.name.endswith((LEASE, PARTIAL)):
                    continue
                with suppress(FileNotFoundError):
                    stat, key = entry.stat(), entry.name.removesuffix(FETCH)
                    if key == entry.name:
                        pieces[key] = stat.st_mtime_ns, key, stat.st_size
                    elif not _remove_unlocked(Path(entry.path)):
                        reserved[key] = stat.st_size
        return [*pieces.values()], sum(size for key, size in reserved.items() if key not in pieces)

    def _leased(self) -> set[str]:
        """The keys that runs read."""
        keys: set[str] = set()
        for path in self.folder.glob(f"*{LEASE}"):
            if not _remove_unlocked(path):
                with suppress(FileNotFoundError):
                    keys.update(path.read_text(encoding="ascii").split())
        return keys

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _lock(self.folder / LOCK, wait=True):
            yield


class Lease:
    """Keeps pieces from removal, until it is dropped or the last process ends that has it from the one that took it."""

    def __init__(self, cache: PieceCache, keys: Iterable[str]):
        self._path, self._owner = cache.folder / f"{uuid.uuid4().hex}{LEASE}", os.getpid()
        with cache._locked():
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with open(self._descriptor, "w", encoding="ascii", closefd=False) as file:
                file.write("\n".join(keys))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            if os.getpid() == self._owner:  # else a copy in a worker, which must not end the lock
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[int | None]:
    """A descriptor of a locked file; None where another one holds it and is not waited for."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, descriptor):
                break
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed meanwhile
    try:
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone leaves it locked where this process was forked meanwhile
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_unlocked(path: Path) -> bool:
    """Removes a file whose process has ended. Returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
