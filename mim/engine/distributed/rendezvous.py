"""Rendezvous: the ranks of one attempt find each other in a store that may hold the keys of an earlier attempt.

torchrun keeps its store when it starts the ranks of a run again. A rank that is early would read there the address of a
process that is gone, and wait for it without end.
"""

import json
import time
import uuid
from collections.abc import Iterator

import torch.distributed as dist

ATTEMPT = "attempt"  # the key under which rank 0 writes the name of this attempt
PAUSES = (0.02, 0.5)  # seconds between two looks, at first and at most


def rendezvous(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """Waits for all ranks, and returns the part of the store that belongs to this attempt alone.

    Rank 0 names the attempt. Each other rank answers under that name with an id, and rank 0 lists the ids. A rank that
    is not on the list has read the name of an earlier attempt, and tries again. Raises TimeoutError, which names the
    ranks that did not come within `timeout` seconds.
    """
    identity = uuid.uuid4().hex
    return _lead(store, identity, size, timeout) if rank == 0 else _follow(store, identity, rank, timeout)


def _lead(store: dist.Store, attempt: str, size: int, timeout: float) -> dist.Store:
    answers = [f"{attempt}/{rank}" for rank in range(1, size)]
    store.set(ATTEMPT, attempt)
    for _ in _looks(timeout):
        if not answers or store.check(answers):
            store.set(f"{attempt}/all", json.dumps([store.get(answer).decode() for answer in answers]))
            return dist.PrefixStore(attempt, store)
    missing = [rank for rank, answer in enumerate(answers, 1) if not store.check([answer])]
    raise TimeoutError(f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} did not come")


def _follow(store: dist.Store, identity: str, rank: int, timeout: float) -> dist.Store:
    answered = ""
    for _ in _looks(timeout):
        attempt = store.get(ATTEMPT).decode() if store.check([ATTEMPT]) else ""
        if attempt != answered:
            store.set(f"{attempt}/{rank}", identity)
            answered = attempt
        everyone = f"{attempt}/all"
        if attempt and store.check([everyone]) and identity in json.loads(store.get(everyone)):
            return dist.PrefixStore(attempt, store)
    raise TimeoutError("rank 0 did not come, or another did not")


def _looks(timeout: float) -> Iterator[None]:
    """One after another, with growing pauses, until the time is over."""
    deadline, (pause, longest) = time.monotonic() + timeout, PAUSES
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
        pause = min(2 * pause, longest)
