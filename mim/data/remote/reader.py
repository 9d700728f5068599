"""Reader: a file of an object store as a file object, for packages that read those."""

import io
from collections.abc import Callable
from typing import Any

Read = Callable[[int, int], bytes]  # from the first byte and the byte behind the last to what lies between


class Reader(io.RawIOBase):
    """A file that is read by position.

    Args:
        read: gives a part of it.
        size: in bytes.
    """

    def __init__(self, read: Read, size: int):
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        count = max(stop - self._position, 0)
        if count:
            buffer[:count] = self._read(self._position, stop)
        self._position += count
        return count
