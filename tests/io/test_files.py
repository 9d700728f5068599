"""Files written atomically, on systems with and without POSIX's file locks."""

import os
import time
from pathlib import Path

import pytest

from mim.io import files

SYSTEMS = pytest.mark.parametrize("locks", [True, False], ids=["POSIX", "Windows"])


@pytest.fixture
def system(locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, also as Windows: no open file is renamed or removed, and no folder is opened."""
    if locks:
        return
    monkeypatch.setattr(files, "fcntl", None)
    replace, unlink, open_posix = Path.replace, Path.unlink, os.open

    def check_closed(path: Path) -> None:
        if os.fspath(path) in {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}:
            raise PermissionError(13, "it is used by another process", os.fspath(path))

    def open_file(path: str, *more: object, **options: object) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return open_posix(path, *more, **options)

    monkeypatch.setattr(Path, "replace", lambda path, target: check_closed(path) or replace(path, target))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: check_closed(path) or unlink(path, missing_ok))
    monkeypatch.setattr(os, "open", open_file)


@SYSTEMS
def test_write_atomically_writes_or_leaves_the_old_file(tmp_path: Path, system: None) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "first")
    files.write_text(path, "second ü")
    assert path.read_bytes() == "second ü".encode()

    def fail(file: object) -> None:
        file.write(b"half")
        raise RuntimeError("cannot go on")

    with pytest.raises(RuntimeError, match="cannot go on"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == "second ü".encode()
    assert list(tmp_path.iterdir()) == [path]


@SYSTEMS
def test_remove_abandoned_removes_files_of_dead_processes_alone(tmp_path: Path, system: None, locks: bool) -> None:
    """A lock tells that a process lives, whatever the age of its file; where there are no locks, its age does."""
    alive, dead = (tmp_path / f"{name}{files.PARTIAL}" for name in ("alive", "dead"))
    for path in (alive, dead):
        path.write_bytes(b"half")
    os.utime(alive if locks else dead, (time.time() - 2 * files.ABANDONED_S,) * 2)
    with alive.open("rb") as file:
        if locks:
            files.fcntl.flock(file, files.fcntl.LOCK_EX)
        assert files.remove_abandoned(tmp_path) == [dead]
    assert list(tmp_path.iterdir()) == [alive]
