"""LmdbFile: an LMDB file that a process opens once, whichever sources read it.

The package lmdb refuses to open a file twice in a process, so sources share what is open. A dataloader worker inherits
it, which LMDB does not allow to be used: it closes its copy and opens the file anew.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import printable_name

DATA = "data.mdb"  # the file in a folder


class LmdbFile:
    """The keys and values of an LMDB file, which is only read, and not locked.

    Args:
        path: a folder with data.mdb, or such a file itself.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path / DATA if path.is_dir() else path
        self._environment: Any = None
        self._pid = self._size = 0

    @classmethod
    def at(cls, path: Path) -> "LmdbFile":
        """The one of this process."""
        path = path.absolute()
        return _FILES.get(path) or _FILES.setdefault(path, cls(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return LmdbFile.at, (self.path,)

    def __del__(self) -> None:
        if self._environment is not None:
            self._environment.close()

    def keys(self) -> Iterator[bytes]:
        """All keys, in LMDB's order. Raises OSError, or an error of lmdb, where it cannot be read."""
        with self._open().begin() as transaction, transaction.cursor() as cursor:
            yield from cursor.iternext(keys=True, values=False)

    def value(self, key: bytes) -> bytes:
        """The value of a key. Raises BrokenImage where it cannot be read."""
        try:
            environment = self._open()
            with environment.begin() as transaction:
                value = transaction.get(key)
        except BrokenImage:
            raise
        except Exception as error:  # those of lmdb have no type in common with others
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error
        if value is None:
            raise BrokenImage("its key is no longer there")
        return value

    def _open(self) -> Any:
        """The file, opened by this process.

        Raises OSError where it is away, and BrokenImage where it is incomplete: reading what is missing of a mapped
        file would end this process.
        """
        import lmdb

        size = os.stat(self._file).st_size
        if self._environment is None or self._pid != os.getpid():
            if self._environment is not None:
                self._environment.close()
            self._environment = lmdb.open(
                str(self.path), subdir=self.path.is_dir(), readonly=True, lock=False, readahead=False, create=False
            )
            self._pid = os.getpid()
            self._size = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        if size < self._size:
            raise BrokenImage(f"the file is incomplete: {size:,} of {self._size:,} bytes")
        return self._environment


_FILES: WeakValueDictionary[Path, LmdbFile] = WeakValueDictionary()  # as lmdb itself keeps a list of what is open
