"""Meeting: the ranks of one attempt find each other in a store that may hold what an earlier attempt left there.

torchrun keeps its store, and all that is in it, when it starts the ranks of a run again: a rank that is early would
read there how to reach a process that is dead, and wait for it without an end.
"""

import json
import time
import uuid
from collections.abc import Iterator

import torch.distributed as dist

ATTEMPT = "attempt"  # the key under which rank 0 says what this attempt is called
PAUSES = (0.02, 0.5)  # seconds between two looks, at first and at most


def meet(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """The part of a store that belongs to this attempt alone; returns when all ranks are here.

    Rank 0 gives the attempt a name that never was, each other rank answers under that name with one of its own, and
    rank 0 lists whom it heard: who is not on the list has read the name of an attempt before. Raises TimeoutError,
    which names the ranks that did not come within `timeout` seconds.
    """
    own = uuid.uuid4().hex
    return _lead(store, own, size, timeout) if rank == 0 else _follow(store, own, rank, timeout)


def _lead(store: dist.Store, own: str, size: int, timeout: float) -> dist.Store:
    answers = [f"{own}/{rank}" for rank in range(1, size)]
    store.set(ATTEMPT, own)
    for _ in _looks(timeout):
        if not answers or store.check(answers):
            store.set(f"{own}/all", json.dumps([store.get(answer).decode() for answer in answers]))
            return dist.PrefixStore(own, store)
    missing = [rank for rank, answer in enumerate(answers, 1) if not store.check([answer])]
    raise TimeoutError(f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} did not come")


def _follow(store: dist.Store, own: str, rank: int, timeout: float) -> dist.Store:
    answered = ""
    for _ in _looks(timeout):
        name = store.get(ATTEMPT).decode() if store.check([ATTEMPT]) else ""
        if name != answered:
            store.set(f"{name}/{rank}", own)
            answered = name
        everyone = f"{name}/all"
        if name and store.check([everyone]) and own in json.loads(store.get(everyone)):
            return dist.PrefixStore(name, store)
    raise TimeoutError("rank 0 did not come, or another did not")


def _looks(timeout: float) -> Iterator[None]:
    """One after another, with growing pauses, until the time is over."""
    deadline, (pause, longest) = time.monotonic() + timeout, PAUSES
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
        pause = min(2 * pause, longest)
