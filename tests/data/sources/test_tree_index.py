"""The index of a folder: it saves a listing where nothing changed, and never stands in the way of a right one."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_data import logged

from mim.data.settings import DataSettings
from mim.data.sources import tree, tree_index
from mim.data.sources.folder import Folder
from mim.data.sources.listing import list_images
from mim.data.sources.tree import walk
from mim.data.sources.tree_index import index_files, read_index, write_index


@pytest.fixture(autouse=True)
def eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small folders get an index, the times of a folder tell at once, and the cache is of this test alone."""
    monkeypatch.setattr(tree_index, "LEAST", 4)
    monkeypatch.setattr(tree, "SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/deep/1.png", "c/1.png", "0.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    wait()
    return tmp_path / "data"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed."""
    seen: list[str] = []
    scan = tree._scan
    monkeypatch.setattr(tree, "_scan", lambda path: seen.append(path) or scan(path))
    return seen


def wait() -> None:
    """The clock of folder times goes in steps of a few ms."""
    time.sleep(0.02)


def names(root: Path, index: bool = True) -> list[str]:
    return [str(path.relative_to(root)) for path in list_images(root, "DATA.path", "any", index=index).paths()]


def damaged_with(content: bytes, file: Path) -> bool:
    """Whether the content is told to be damaged; otherwise it must be of no effect."""
    file.write_bytes(content)
    with logged() as lines:
        read_index(file.parent / "data")
    return any("is damaged" in line for line in lines)


# -------------------------------------------------------------------- what it saves


def test_index_lies_beside_the_folder_and_saves_listing_it_again(root: Path, scans: list[str]) -> None:
    first = names(root)
    assert len(scans) == 5
    assert sorted(path.name for path in root.parent.iterdir()) == [".data.mim-index.npz", "data"]
    scans.clear()
    before = os.stat(index_files(root)[0])
    assert names(root) == first == names(root, index=False)
    assert len(scans) == 5  # of the last
    assert os.stat(index_files(root)[0]).st_ino == before.st_ino  # it is not written again


def test_index_of_a_folder_with_one_change_lists_that_one(root: Path, scans: list[str]) -> None:
    names(root)
    (root / "b" / "2.png").touch()
    wait()
    for expected in ([str(root / "b")], []):
        scans.clear()
        assert "b/2.png" in names(root)
        assert scans == expected


def test_index_moves_with_the_folder_it_is_of(root: Path, scans: list[str]) -> None:
    expected = names(root)
    root.parent.joinpath("elsewhere").mkdir()
    for path in (root, index_files(root)[0]):
        path.rename(root.parent / "elsewhere" / path.name)
    scans.clear()
    assert names(root.parent / "elsewhere" / "data") == expected
    assert len(scans) <= 1  # the root: where it lies is one of its properties


def test_index_that_cannot_lie_beside_the_folder_lies_in_the_cache(root: Path, scans: list[str]) -> None:
    beside, cached = index_files(root)
    beside.mkdir()  # nothing can be written there, even by root
    expected = names(root)
    assert cached.parent == root.parent / "cache" / "mim-toolkit" / "folders"
    assert cached.is_file()
    scans.clear()
    with logged() as lines:
        assert names(root) == expected
    assert not scans
    assert lines == []


def test_index_that_can_be_kept_nowhere_is_told_of_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "file").touch()
    monkeypatch.setattr(tree_index, "index_files", lambda root: [root.parent / "file" / "index.npz"])
    with logged() as lines:
        assert len(names(root)) == 6
    assert len(lines) == 1
    assert lines[0].startswith(f"the index of {root} is not kept, so that it is listed anew next time")


def test_index_of_few_images_and_with_the_key_off_is_not_kept(
    root: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DataSettings(path=str(root), channels=1)
    Folder("train", settings, index=False)
    assert not index_files(root)[0].exists()
    Folder("train", settings)
    assert index_files(root)[0].exists()
    scans.clear()
    Folder("train", settings, index=False)
    assert len(scans) == 5
    index_files(root)[0].unlink()
    monkeypatch.setattr(tree_index, "LEAST", 7)
    Folder("train", settings)
    assert not index_files(root)[0].exists()


def test_index_is_written_by_one_process_of_a_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    names(root)
    assert not index_files(root)[0].exists()


@pytest.mark.parametrize(("at", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_index_that_claims_what_zipfile_cannot_do_is_damaged(root: Path, at: int, value: int) -> None:
    """In the entries of its table, which begin with PK 1 2: their flags, and their method of compression."""
    expected = names(root)
    file = index_files(root)[0]
    content = bytearray(file.read_bytes())
    start = content.find(b"PK\x01\x02")
    while start >= 0:
        content[start + at] = value
        start = content.find(b"PK\x01\x02", start + 1)
    assert damaged_with(bytes(content), file)
    assert names(root) == expected


# -------------------------------------------------------------------- never stale

CHANGES: dict[str, Callable[[Path], object]] = {
    "file added": lambda root: (root / "b" / "deep" / "2.png").touch(),
    "file removed": lambda root: (root / "a" / "1.png").unlink(),
    "file renamed": lambda root: (root / "a" / "1.png").rename(root / "a" / "3.png"),
    "file hidden": lambda root: (root / "a" / "1.png").rename(root / "a" / ".1.png"),
    "file moved": lambda root: (root / "a" / "1.png").rename(root / "c" / "3.png"),
    "file becomes a pipe": lambda root: ((root / "c" / "1.png").unlink(), os.mkfifo(root / "c" / "1.png")),
    "folder added": lambda root: (root / "d").mkdir() or (root / "d" / "1.png").touch(),
    "folder removed": lambda root: shutil.rmtree(root / "b" / "deep"),
    "folder renamed": lambda root: (root / "b").rename(root / "z"),
    "folders exchanged": lambda root: (
        (root / "a").rename(root / "x"),
        (root / "b").rename(root / "a"),
        (root / "x").rename(root / "b"),
    ),
    "folder behind a link": lambda root: (root.parent / "far" / "2.png").touch(),
    "target of a link": lambda root: ((root / "l").unlink(), (root / "l").symlink_to("a/deep")),
    "target of a link that led nowhere": lambda root: (
        (root.parent / "later").mkdir() or (root.parent / "later" / "1.png").touch()
    ),
    "image behind a link becomes a folder": lambda root: (
        (root.parent / "one.png").unlink(),
        (root.parent / "one.png").mkdir(),
        (root.parent / "one.png" / "9.png").touch(),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("times", ["as they are", "set back"])
def test_index_never_hides_a_change(root: Path, change: Callable[[Path], object], times: str) -> None:
    """times: copying tools set those of a folder to what they were at the source."""
    for name in ("far/1.png", "one.png"):
        (root.parent / name).parent.mkdir(exist_ok=True)
        (root.parent / name).touch()
    for name, target in (("l", root.parent / "far"), ("m", root.parent / "later"), ("n.png", root.parent / "one.png")):
        (root / name).symlink_to(target)
    wait()
    before = {
        path: os.stat(path).st_mtime_ns for path in [root, *root.rglob("*"), root.parent / "far"] if path.exists()
    }
    old = names(root)
    assert index_files(root)[0].exists()
    change(root)
    if times == "set back":
        for path, mtime in before.items():
            if path.exists():
                os.utime(path, ns=(mtime, mtime))
    wait()
    new = names(root, index=False)
    assert new != old
    assert names(root) == new
    assert names(root) == new


def test_index_knows_a_folder_only_after_its_times_have_settled(
    root: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that joins in the same step of the clock would not be seen."""
    monkeypatch.setattr(tree, "SETTLED_NS", 3_000_000_000)
    assert (walk(root, None).tree.stamp_FS == -1).all()
    os.utime(root / "a", ns=(10**18, 10**18))  # the other time is that of now
    assert (walk(root, None).tree.stamp_FS == -1).all()
    for _ in range(2):
        scans.clear()
        names(root)
        assert len(scans) == 5


@pytest.mark.parametrize("column", [0, 1, 2], ids=["time of its content", "time of its properties", "number"])
def test_index_knows_a_folder_by_its_times_and_number(root: Path, scans: list[str], column: int) -> None:
    known = walk(root, None).tree
    scans.clear()
    assert walk(root, known).tree.images.bytes_B.tobytes() == known.images.bytes_B.tobytes()
    assert not scans
    known.stamp_FS[1, column] += 1
    walk(root, known)
    assert scans == [str(root / known.folders[1])]


def test_index_is_not_trusted_on_a_file_system_of_fuse(
    root: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store gives folders times that stand still."""
    device = os.stat(root).st_dev
    mounts = root.parent / "mounts"
    line = "36 35 {}:{} / /mnt rw,noatime shared:1 - {} source rw\n"
    for system, count in (("ext4", 0), ("fuseblk", 0), ("fuse.s3fs", 5), ("fuse", 5)):
        mounts.write_text("a line of another kind\n" + line.format(os.major(device), os.minor(device), system))
        monkeypatch.setattr(tree, "MOUNTS", mounts)
        names(root)
        scans.clear()
        names(root)
        assert len(scans) == count, system


def test_index_does_not_name_what_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's index: a folder that is closed to this user."""
    names(root)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not str(path).endswith("/a"))
    with logged() as lines:
        assert names(root) == ["0.png", "b/1.png", "b/deep/1.png", "c/1.png"]
    assert lines == [f"1 are folders that may not be read: their images are left out, such as {root}/a"]


# -------------------------------------------------------------------- damage


def test_index_that_is_damaged_anywhere_is_left_out_with_a_warning(root: Path) -> None:
    expected = names(root)
    file = index_files(root)[0]
    content = file.read_bytes()
    warnings = 0
    for position in range(0, len(content), 61):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        warnings += damaged_with(bytes(flipped), file)
        known = read_index(root)
        assert known is None or walk(root, known).tree.images.bytes_B.tobytes() == b"".join(
            name.rpartition("/")[2].encode() for name in expected
        )
    assert warnings > 0.5 * len(content) / 61
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        assert damaged_with(content[:length], file)
    with logged() as lines:
        assert names(root) == expected
    assert len(lines) == 1
    assert lines[0].startswith(f"the index {file} is damaged (")
    assert damaged_with(file.read_bytes(), file) is False  # it was written anew


def forge(file: Path, **columns: np.ndarray) -> None:
    with np.load(file) as arrays:
        content = dict(arrays)
    with file.open("wb") as stream:
        np.savez(stream, **(content | columns))


def buffer(*parts: bytes) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(part) for part in parts])
    return {"_B": np.frombuffer(b"".join(parts), np.uint8), "_end": ends.astype(np.int64)}


@pytest.mark.parametrize(
    "columns",
    [
        {f"images{key}": value for key, value in buffer(b"0", b"../x.png", b"2", b"3", b"4", b"5").items()},
        {f"images{key}": value for key, value in buffer(b"0", b".hidden.png", b"2", b"3", b"4", b"5").items()},
        {f"images{key}": value for key, value in buffer(b"0", b"", b"2", b"3", b"4", b"5").items()},
        {f"images{key}": value for key, value in buffer(b"0", b"1", b"2").items()},
        {f"subfolders{key}": value for key, value in buffer(b"a", b"b", b"..", b"deep").items()},
        {"image_end_F": np.array([1, 3, 2, 5, 6])},
        {"image_end_F": np.array([1, 3, 4, 5, 6, 6])},
        {"image_end_F": np.array([1.0, 3, 4, 5, 6])},
        {"hash_N": np.zeros(3, np.uint32)},
        {"stamp_FS": np.zeros((5, 2), np.int64)},
        {"images_end": np.array([-1, 3, 4, 5, 6, 7])},
    ],
)
def test_index_whose_parts_do_not_fit_or_lead_elsewhere_is_left_out(root: Path, columns: dict[str, np.ndarray]) -> None:
    expected = names(root)
    forge(index_files(root)[0], **columns)
    with logged() as lines:
        assert names(root) == expected
    assert [line for line in lines if "is damaged (its parts do not fit each other)" in line] == lines
    assert lines


def test_index_of_another_version_is_replaced_without_a_word(root: Path, scans: list[str]) -> None:
    expected = names(root)
    forge(index_files(root)[0], version=np.frombuffer(b"mim-index 0", np.uint8))
    scans.clear()
    with logged() as lines:
        assert names(root) == expected
    assert len(scans) == 5
    assert lines == []
    scans.clear()
    assert names(root) == expected
    assert not scans


def test_index_is_whole_whoever_writes_it_at_once(root: Path) -> None:
    expected, wrong = names(root), []

    def work() -> None:
        for _ in range(15):
            write_index(root, walk(root, None).tree)
            known = read_index(root)
            if known is None or names(root) != expected:
                wrong.append(known)

    with logged() as lines:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert lines == []
    assert [path.name for path in root.parent.glob(".*")] == [".data.mim-index.npz"]


# -------------------------------------------------------------------- odd places


def test_index_of_two_places_is_the_newer_one(root: Path, scans: list[str]) -> None:
    """The one beside the folder may be of another user's, and stay as it is."""
    names(root)
    beside, cached = index_files(root)
    (root / "b" / "2.png").touch()
    wait()
    old = beside.read_bytes()
    names(root)
    cached.parent.mkdir(parents=True)
    beside.rename(cached)
    beside.write_bytes(old)
    os.utime(beside, ns=(0, os.stat(cached).st_mtime_ns - 1))
    scans.clear()
    assert "b/2.png" in names(root)
    assert not scans


def test_index_of_a_folder_with_the_longest_name_lies_in_the_cache_without_a_word(root: Path, scans: list[str]) -> None:
    root = root.rename(root.with_name("n" * 250))
    with logged() as lines:
        expected = names(root)
        scans.clear()
        assert names(root) == expected
    assert lines == []
    assert not scans


def test_index_of_a_user_without_a_home_lies_in_the_temporary_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    monkeypatch.setattr(tempfile, "tempdir", str(root.parent))
    assert len(names(root)) == 6
    assert index_files(root)[1].parent == root.parent / f"cache-{2**31 - 5}" / "mim-toolkit" / "folders"
