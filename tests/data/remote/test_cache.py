"""PieceCache: whole pieces only, never more bytes than the limit, in whatever processes, killed or not."""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import BinaryIO

import pytest
from small_data import logged

from mim.data.remote.cache import Lease, PieceCache

FORK = multiprocessing.get_context("fork")
SIZE = 1000  # bytes of a piece


def content(key: str) -> bytes:
    return (key.encode() * SIZE)[:SIZE]


def fill(key: str) -> Callable[[BinaryIO], None]:
    return lambda file: file.write(content(key)) and None


def fetch(cache: PieceCache, *keys: str, wait: bool = True) -> list[str]:
    return [cache.fetch(key, SIZE, fill(key), wait) for key in keys]


def here(cache: PieceCache) -> set[str]:
    """The keys of the pieces, each of which must be whole."""
    names = {path.name for path in cache.folder.iterdir() if "." not in path.name} - {"lock"}
    assert all((cache.folder / name).read_bytes() == content(name) for name in names)
    return names


@pytest.fixture
def cache(tmp_path: Path) -> PieceCache:
    """Room for three pieces."""
    return PieceCache(tmp_path / "cache", 3 * SIZE + 10)


@pytest.fixture
def process() -> Iterator[Callable[..., BaseProcess]]:
    """Starts processes, which are killed at the end."""
    processes: list[BaseProcess] = []

    def start(target: Callable[..., object], *words: object) -> BaseProcess:
        processes.append(FORK.Process(target=target, args=words))
        processes[-1].start()
        return processes[-1]

    yield start
    for each in processes:
        each.kill()
        each.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cache_removes_what_was_used_longest_ago(cache: PieceCache) -> None:
    assert fetch(cache, "a", "b", "c") == ["here"] * 3
    for age, key in enumerate("bca"):
        os.utime(cache.folder / key, (age, age))
    os.close(cache.open("b", SIZE) or -1)  # which counts as a use
    assert fetch(cache, "d") == ["here"]
    assert here(cache) == {"a", "b", "d"}
    assert cache.used() == 3 * SIZE


def test_cache_fetches_a_piece_once_and_a_damaged_one_again(cache: PieceCache) -> None:
    fetch(cache, "a")
    calls: list[BinaryIO] = []
    assert cache.fetch("a", SIZE, calls.append, True) == "here"
    assert not calls
    os.truncate(cache.folder / "a", SIZE - 1)
    assert cache.open("a", SIZE) is None
    assert fetch(cache, "a") == ["here"]
    assert here(cache) == {"a"}


def test_cache_never_removes_what_a_run_reads(cache: PieceCache) -> None:
    fetch(cache, "a", "b", "c")
    lease = Lease(cache, ["a", "b", "c"])
    assert fetch(cache, "d") == ["no room"]
    assert here(cache) == {"a", "b", "c"}
    del lease
    assert fetch(cache, "d") == ["here"]


def test_cache_keeps_all_where_room_cannot_be_made(cache: PieceCache) -> None:
    fetch(cache, "a", "b", "c")
    lease = Lease(cache, ["a", "b"])
    assert cache.fetch("large", 3 * SIZE, fill("x"), True) == "no room"
    assert here(cache) == {"a", "b", "c"}
    del lease


def test_cache_lease_outlives_workers_and_ends_with_a_killed_process(
    cache: PieceCache, process: Callable[..., BaseProcess]
) -> None:
    fetch(cache, "a", "b", "c")
    lease = Lease(cache, ["a", "b", "c"])
    worker = process(lease.__del__)
    worker.join()
    assert fetch(cache, "d") == ["no room"]
    del lease

    def hold() -> None:
        kept = Lease(cache, ["a", "b", "c"])
        (cache.folder.parent / "ready").touch()
        signal.pause()
        del kept

    holder = process(hold)
    until((cache.folder.parent / "ready").exists)
    assert fetch(cache, "d") == ["no room"]
    holder.kill()
    holder.join()
    assert fetch(cache, "d") == ["here"]


def test_cache_process_killed_while_it_fetches_leaves_nothing_behind(
    cache: PieceCache, process: Callable[..., BaseProcess]
) -> None:
    def half(file: BinaryIO) -> None:
        file.write(content("a")[: SIZE // 2])
        file.flush()
        (cache.folder.parent / "half").touch()
        signal.pause()

    killed = process(lambda: cache.fetch("a", SIZE, half, True))
    until((cache.folder.parent / "half").exists)
    assert fetch(cache, "a", wait=False) == ["underway"]
    assert fetch(cache, "b", "c") == ["here"] * 2
    assert cache.used() == 3 * SIZE
    killed.kill()
    killed.join()
    assert cache.used() == 2 * SIZE
    assert fetch(cache, "a") == ["here"]
    assert here(cache) == {"a", "b", "c"}
    assert not [path for path in cache.folder.iterdir() if path.suffix in (".partial", ".fetch")]


def test_cache_of_several_processes_fetches_a_piece_once(
    cache: PieceCache, process: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    def slow(file: BinaryIO) -> None:
        (tmp_path / f"fill-{os.getpid()}").touch()
        time.sleep(0.2)
        file.write(content("a"))

    processes = [process(lambda: os._exit(cache.fetch("a", SIZE, slow, True) != "here")) for _ in range(4)]
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0] * 4
    assert len(list(tmp_path.glob("fill-*"))) == 1


def test_cache_of_several_processes_stays_within_its_limit(
    cache: PieceCache, process: Callable[..., BaseProcess]
) -> None:
    processes = [process(fetch, cache, *(f"{name}{number}" for number in range(9))) for name in "abcd"]
    used = []
    while any(each.is_alive() for each in processes):
        used.append(cache.used())
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0] * 4
    assert 0 < max(used) <= cache.limit
    assert 0 < len(here(cache)) <= 3


def test_cache_counts_a_piece_whose_fetch_ends_meanwhile(
    cache: PieceCache, process: Callable[..., BaseProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the names in the folder and their sizes, the process that fetches has time to end."""
    filled, listed, scan = tmp_path / "filled", tmp_path / "listed", os.scandir

    def slow_scan(folder: Path) -> contextlib.nullcontext[list[os.DirEntry[str]]]:
        with scan(folder) as found:
            entries = list(found)
        listed.touch()
        until(filled.exists)
        time.sleep(0.2)
        return contextlib.nullcontext(entries)

    def fill_once_listed(file: BinaryIO) -> None:
        until(listed.exists)
        file.write(content("a"))
        filled.touch()

    fetching = process(lambda: cache.fetch("a", SIZE, fill_once_listed, True))
    until(lambda: (cache.folder / "a.fetch").exists() and (cache.folder / "a.fetch").stat().st_size)
    monkeypatch.setattr("mim.data.remote.cache.os.scandir", slow_scan)
    assert cache.used() == SIZE
    fetching.join()


def test_cache_disk_that_takes_no_more_is_told_and_costs_nothing_else(cache: PieceCache) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fetch(cache, "a")

    def two_writes(file: BinaryIO) -> None:
        file.write(bytes(SIZE * 1000))

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE * 500, limits[1]))
        wide = PieceCache(cache.folder, 10**9)
        with logged() as lines:
            assert wide.fetch("b", SIZE * 400, two_writes, True) == "no room"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert any("not copied is read from the store" in line for line in lines)
    assert here(cache) == {"a"}
    assert cache.used() == SIZE


def test_cache_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"DATA\.cache \S*file/cache cannot hold copies .*: name a folder on a disk"):
        PieceCache(tmp_path / "file" / "cache", SIZE)
