"""Files that are whole or not there: written aside, synced and renamed, so that a crash leaves the old one."""

import contextlib
import errno
import fcntl
import io
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ASIDE = ".partial"  # the end of a name under which a file is being written
ABANDONED_S = 3600.0  # where a file system has no locks: a file that did not grow for so long is of a dead process
UNSYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot sync a folder


def write_atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """A file whose content `fill` writes.

    Raises OSError that names the file where it cannot be written (on a full disk, say). Whatever is raised, what stood
    there before stays whole, and nothing is left beside it.
    """
    try:
        aside, raw = _open_aside(path)
    except OSError as error:
        raise _named(error, path) from error
    with raw:  # holds the lock until the file has its name
        file = _Noting(raw)
        try:
            fill(file)
            file.flush()
            os.fsync(raw.fileno())
            aside.replace(path)
            _sync_folder(path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            reason = file.error or error  # torch.save raises another error in the place of that of the file
            if isinstance(reason, OSError) and reason.filename in (None, str(aside)):
                raise _named(reason, path) from error
            raise
        finally:
            raw.close()  # not the buffer, which would try once more to write what did not fit


def write_text(path: Path, text: str) -> None:
    """A UTF-8 text file."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict) -> None:
    """An indented JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_text(path: Path, text: str) -> None:
    """More text at the end of a file. Raises OSError that names the file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:  # that of closing, which writes, names none
        raise _named(error, path) from error


def remove_abandoned(folder: Path) -> list[Path]:
    """Removes, and gives, what killed processes left half written in a folder; never what a live one is writing.

    Whoever writes holds a lock on the file, which ends with the process. Where a file system has no locks, a file that
    did not change for an hour counts as left.
    """
    removed = []
    for aside in sorted(folder.glob(f"*{ASIDE}")):
        with contextlib.suppress(OSError), aside.open("rb") as file:
            if not aside.is_symlink() and _is_abandoned(file):
                aside.unlink()
                removed.append(aside)
    return removed


class _Noting(io.BufferedWriter):
    """A file that remembers why writing failed, as whoever fills it may raise something else."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _open_aside(path: Path) -> tuple[Path, io.FileIO]:
    """A new locked file beside `path`, of a name that no other process takes."""
    while True:
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{ASIDE}")
        raw = io.FileIO(aside, "x")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(raw, fcntl.LOCK_EX)
        if aside.exists():  # else it was taken for an abandoned one before it was locked
            return aside, raw
        raw.close()


def _is_abandoned(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_S
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a renaming outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCABLE:
            raise
    finally:
        os.close(descriptor)


def _named(error: OSError, path: Path) -> OSError:
    """The same error, of that file; one without a number of the system keeps its text."""
    return OSError(f"{path}: {error}") if error.errno is None else OSError(error.errno, error.strerror, str(path))
