"""Heartbeat: each rank tells the others that it lives and how far it is, so that one that is lost can be named."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist

from mim.errors import ExitCode

INTERVAL = 1.0  # seconds between two beats
SILENT = 4 * INTERVAL  # without a beat for longer than this a rank is taken for dead or stopped
LOSING = "lost another rank"  # what a rank leaves with that is not itself the cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a rank last told: when (seconds of its clock), where it was in the run, in a count and in words, since when.

    left: the error it ended with, or empty.
    """

    time: float
    since: float
    count: int
    phase: str
    host: str
    process: int
    left: str = ""

    def words(self, rank: int) -> str:
        """For a person."""
        return f"rank {rank} ({self.host}, process {self.process})"


class Heartbeat:
    """The beats of this rank, in a thread, through the store by which the ranks found each other.

    Where this rank waits for longer than `timeout` seconds while another is silent or behind, it says which, and ends
    the process with the exit code 4: the waiting itself may be inside a kernel that no error can reach.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float):
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._count, self._phase, self._since, self._left = 0, "starting", time.time(), ""
        self._ended = threading.Event()
        self._tell()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def set_phase(self, phase: str) -> None:
        """Says what this rank is doing, as in `reading images of step 7`; all say the same things in the same order."""
        self._count, self._phase, self._since = self._count + 1, phase, time.time()

    def leave(self, error: str = "") -> None:
        """The last beat, with the error that ends this rank."""
        self._ended.set()
        self._thread.join(SILENT)  # Python aborts where it ends while a thread is inside of the store
        self._left = error
        try:
            self._tell()
        except RuntimeError:  # the store is gone, and nobody left to tell
            return

    def lost(self) -> str:
        """Which ranks ended or went silent, in words; else which are behind; waits a few seconds for the former."""
        deadline = time.time() + SILENT + INTERVAL
        while time.time() < deadline:
            if gone := self._gone():
                return gone
            time.sleep(INTERVAL / 4)
        return self._behind()

    def _gone(self) -> str:
        words = []
        for rank, beat in self._others():
            age = time.time() - beat.time
            if beat.left not in ("", LOSING):
                words.append(f"{beat.words(rank)} ended while {beat.phase}: {beat.left}")
            elif not beat.left and age > SILENT:
                words.append(f"{beat.words(rank)} has not been heard of for {age:.0f} s, since it was {beat.phase}")
        return "; ".join(words)

    def _behind(self) -> str:
        return "; ".join(
            f"{beat.words(rank)} has been {beat.phase} for {time.time() - beat.since:.0f} s"
            for rank, beat in self._others()
            if beat.count < self._count and not beat.left
        )

    def _others(self) -> Iterator[tuple[int, Beat]]:
        for rank in range(self.size):
            beat = self._of(rank) if rank != self.rank else None
            if beat is not None:
                yield rank, beat

    def _of(self, rank: int) -> Beat | None:
        key = f"beat-{rank}"
        try:
            return Beat(**json.loads(self.store.get(key))) if self.store.check([key]) else None
        except RuntimeError:  # the store is gone with the process that kept it
            return None

    def _tell(self) -> None:
        beat = {
            **{"time": time.time(), "since": self._since, "count": self._count, "phase": self._phase},
            **{"host": socket.gethostname(), "process": os.getpid(), "left": self._left},
        }
        self.store.set(f"beat-{self.rank}", json.dumps(beat))

    def _beat(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                self._tell()
            except RuntimeError:  # as above; the group notices, too
                return
            waited = time.time() - self._since
            if waited > self.timeout and (missing := self._gone() or self._behind()):
                print(f"error: {told(self.rank, missing)}", file=sys.stderr, flush=True)
                os._exit(ExitCode.RANK_LOST)


def told(rank: int, missing: str) -> str:
    """The message of a rank that lost others."""
    return (
        f"rank {rank} cannot go on: {missing}. The run goes on from its last checkpoint with the same command, or by "
        "itself under torchrun --max-restarts"
    )
