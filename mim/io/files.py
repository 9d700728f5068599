"""Files written atomically: to a temporary file, synced, then renamed. A crash leaves the old file intact.

Windows has no file locks of this kind, renames no open file, and syncs no folder.
"""

import contextlib
import errno
import io
import json
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # the suffix of a temporary file
ABANDONED_S = 3600.0  # without file locks: a temporary file unchanged for this long belongs to a dead process
UNSYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # raised by file systems that cannot sync a folder


def write_atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Writes a file whose content `fill` writes.

    Raises OSError, naming the file, where it cannot be written, for example on a full disk. After any exception the old
    file is intact and no temporary file is left.
    """
    try:
        partial, raw = _open_partial(path)
    except OSError as error:
        raise _named(error, path) from error
    with raw:  # holds the lock until the file has its name
        file = _RecordingFile(raw)
        try:
            fill(file)
            file.flush()
            os.fsync(raw.fileno())
            if fcntl is None:
                raw.close()
            partial.replace(path)
            _sync_folder(path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                raw.close()
                partial.unlink(missing_ok=True)
            reason = file.error or error  # torch.save raises its own error instead of the file's
            if isinstance(reason, OSError) and reason.filename in (None, str(partial)):
                raise _named(reason, path) from error
            raise
        finally:
            raw.close()  # not the buffer, which would try again to write what did not fit


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict) -> None:
    """Writes an indented JSON file; see to_json."""
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: Any, indent: int | None = None) -> str:
    """Plain values as JSON. NaN and infinity, for which JSON has no number, become null."""
    return json.dumps(_without_infinity(content), indent=indent, allow_nan=False)


def _without_infinity(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_infinity(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_infinity(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def append_text(path: Path, text: str) -> None:
    """Appends text to a file. Raises OSError, naming the file, where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:  # closing writes too, and its error names no file
        raise _named(error, path) from error


def remove_abandoned(folder: Path) -> list[Path]:
    """Removes the temporary files of killed processes from a folder, and returns their paths.

    A process that writes holds a lock on its file. Without file locks, a file is abandoned after an hour.
    """
    removed = []
    for partial in sorted(folder.glob(f"*{PARTIAL}")):
        with contextlib.suppress(OSError):
            with partial.open("rb") as file:
                abandoned = not partial.is_symlink() and _is_abandoned(file)
                if abandoned and fcntl is not None:
                    partial.unlink()  # under the lock, so that no other process takes the file meanwhile
            if abandoned:
                partial.unlink(missing_ok=True)  # Windows removes no open file
                removed.append(partial)
    return removed


class _RecordingFile(io.BufferedWriter):
    """A file that keeps the error of a failed write, because the caller may raise another one."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _open_partial(path: Path) -> tuple[Path, io.FileIO]:
    """A new locked temporary file in the folder of `path`, under a name of its own."""
    while True:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        raw = io.FileIO(partial, "x")
        with contextlib.suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(raw, fcntl.LOCK_EX)
        if partial.exists():  # else another process removed it as abandoned before it was locked
            return partial, raw
        raw.close()


def _is_abandoned(file: BinaryIO) -> bool:
    try:
        if fcntl is None:
            raise OSError
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system, or a system, without locks
        return time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S
    return True


def _sync_folder(folder: Path) -> None:
    """Makes sure that a rename survives a power failure."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCABLE:
            raise
    finally:
        os.close(descriptor)


def _named(error: OSError, path: Path) -> OSError:
    return OSError(f"{path}: {error}") if error.errno is None else OSError(error.errno, error.strerror, str(path))
