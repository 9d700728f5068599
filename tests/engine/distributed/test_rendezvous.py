"""Ranks that meet in a store which an earlier attempt has used, as under torchrun's restarts."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mim.engine.distributed.rendezvous import rendezvous

SIZE = 3
SOON = timedelta(seconds=20)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=SOON, wait_for_workers=False)


def client(server: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=SOON)


def come(pool: ThreadPoolExecutor, server: dist.TCPStore, rank: int, timeout: float = 20) -> Future:
    return pool.submit(lambda: rendezvous(client(server), rank, SIZE, timeout))


def test_rendezvous_gives_all_ranks_one_part_of_the_store(pool: ThreadPoolExecutor, server: dist.TCPStore) -> None:
    stores = [future.result() for future in [come(pool, server, rank) for rank in (2, 0, 1)]]
    stores[0].set("address", "here")
    assert [store.get("address") for store in stores] == [b"here"] * SIZE
    assert not server.check(["address"])


@pytest.mark.parametrize(
    "early", [(1, 2), *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in ((0, 2), (0,), (2,)))]
)
def test_rendezvous_after_another_sees_nothing_of_it_whoever_is_early(
    pool: ThreadPoolExecutor, server: dist.TCPStore, early: tuple[int, ...]
) -> None:
    for attempt in range(3):
        futures = {rank: come(pool, server, rank) for rank in early}
        time.sleep(0.3)
        assert not any(future.done() for future in futures.values())
        futures |= {rank: come(pool, server, rank) for rank in range(SIZE) if rank not in early}
        stores = [futures[rank].result() for rank in range(SIZE)]
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(attempt))
        assert [store.get("address") for store in stores] == [str(attempt).encode()] * SIZE


def test_rendezvous_that_was_cut_short_does_not_hold_up_the_next(
    pool: ThreadPoolExecutor, server: dist.TCPStore
) -> None:
    """Rank 0 and rank 1 came, and rank 2 died before: none was listed."""
    gone = [come(pool, server, rank, timeout=0.5) for rank in (0, 1)]
    with pytest.raises(TimeoutError, match="rank 2 did not come"):
        gone[0].result()
    with pytest.raises(TimeoutError, match="rank 0 did not come, or another did not"):
        gone[1].result()
    for future in [come(pool, server, rank) for rank in (1, 2, 0)]:
        future.result()


def test_rendezvous_names_all_who_did_not_come(pool: ThreadPoolExecutor, server: dist.TCPStore) -> None:
    with pytest.raises(TimeoutError, match="ranks 1, 2 did not come"):
        rendezvous(client(server), 0, SIZE, 0.2)


def test_rendezvous_of_one_rank_waits_for_nobody(server: dist.TCPStore) -> None:
    rendezvous(client(server), 0, 1, 0.1).set("address", "here")
