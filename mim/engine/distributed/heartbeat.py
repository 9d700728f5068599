"""Heartbeat: each rank tells the others that it lives and what it does, so that a lost rank can be named."""

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
SILENT = 4 * INTERVAL  # seconds without a beat after which a rank counts as dead or stopped
LOST_ANOTHER = "lost another rank"  # the last word of a rank that ends because of another


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The last message of a rank."""

    time: float  # when it was sent, in seconds of the sender's clock
    since: float  # when the phase began
    count: int  # phases so far
    phase: str  # what the rank does
    host: str
    process: int
    left: str = ""  # the error it ended with

    def describe(self, rank: int) -> str:
        """The rank, with its machine and process."""
        return f"rank {rank} ({self.host}, process {self.process})"


class Heartbeat:
    """Sends the beats of this rank from a thread, through the store by which the ranks found each other.

    Where this rank waits for longer than `timeout` seconds while another is silent or behind, it names that rank and
    ends the process with ExitCode.RANK_LOST, because no error can reach a process that waits inside a kernel.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float):
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._count, self._phase, self._since, self._left = 0, "starting", time.time(), ""
        self._ended = threading.Event()
        self._send()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def set_phase(self, phase: str) -> None:
        """Says what this rank does: `reading images of step 7`. All ranks must have equal phases in equal order."""
        self._count, self._phase, self._since = self._count + 1, phase, time.time()

    def leave(self, error: str = "") -> None:
        """Sends the last beat, with the error that ends this rank."""
        self._ended.set()
        self._thread.join(SILENT)  # Python aborts where it ends while a thread is inside the store
        self._left = error
        try:
            self._send()
        except RuntimeError:  # the store is gone, so nobody listens
            return

    def lost_ranks(self) -> str:
        """The ranks that ended or are silent, in words, or else those that are behind. Waits for some seconds."""
        deadline = time.time() + SILENT + INTERVAL
        while time.time() < deadline:
            if gone := self._gone():
                return gone
            time.sleep(INTERVAL / 4)
        return self._behind()

    def _gone(self) -> str:
        texts = []
        for rank, beat in self._others():
            age = time.time() - beat.time
            if beat.left not in ("", LOST_ANOTHER):
                texts.append(f"{beat.describe(rank)} ended while {beat.phase}: {beat.left}")
            elif not beat.left and age > SILENT:
                texts.append(f"{beat.describe(rank)} has been silent for {age:.0f} s, since it was {beat.phase}")
        return "; ".join(texts)

    def _behind(self) -> str:
        return "; ".join(
            f"{beat.describe(rank)} has been {beat.phase} for {time.time() - beat.since:.0f} s"
            for rank, beat in self._others()
            if beat.count < self._count and not beat.left
        )

    def _others(self) -> Iterator[tuple[int, Beat]]:
        for rank in range(self.size):
            beat = self._last_beat(rank) if rank != self.rank else None
            if beat is not None:
                yield rank, beat

    def _last_beat(self, rank: int) -> Beat | None:
        key = f"beat-{rank}"
        try:
            return Beat(**json.loads(self.store.get(key))) if self.store.check([key]) else None
        except RuntimeError:  # the store is gone with the process that kept it
            return None

    def _send(self) -> None:
        beat = {
            **{"time": time.time(), "since": self._since, "count": self._count, "phase": self._phase},
            **{"host": socket.gethostname(), "process": os.getpid(), "left": self._left},
        }
        self.store.set(f"beat-{self.rank}", json.dumps(beat))

    def _beat(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                self._send()
            except RuntimeError:  # the store is gone; the process group will notice
                return
            waited = time.time() - self._since
            if waited > self.timeout and (missing := self._gone() or self._behind()):
                print(f"error: {lost_message(self.rank, missing)}", file=sys.stderr, flush=True)
                os._exit(ExitCode.RANK_LOST)


def lost_message(rank: int, missing: str) -> str:
    """The message of a rank that lost others."""
    return (
        f"rank {rank} cannot go on: {missing}. The same command continues the run from its last checkpoint, as does "
        "torchrun --max-restarts by itself"
    )
