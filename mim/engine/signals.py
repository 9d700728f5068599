"""Signals: a request to end is noted, and the run ends between two steps; a second Ctrl-C ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mim.errors import RunInterrupted

# those that this system has: Windows has no SIGUSR1
END_SIGNALS = tuple(
    number for name in ("SIGTERM", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None)) is not None
)


class EndRequests:
    """signal_name: of the first such signal that this process received, or empty."""

    def __init__(self) -> None:
        self.signal_name = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name

    def ending(self, step: int, steps: int, reason: str) -> RunInterrupted:
        """The error that ends the run of so many steps after a step, on each rank. reason: of this rank, or empty."""
        reason = self.signal_name or reason or "a request to another rank"
        return RunInterrupted(
            f"ended on {reason} after step {step:,} of {steps:,}; the same command continues from there"
        )


@contextmanager
def ignore_sigterm() -> Iterator[None]:
    """Inside, SIGTERM has no effect: for the last seconds of a process that ends anyway."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def note_end_requests() -> Iterator[EndRequests]:
    """Inside, SIGTERM, SIGUSR1 and the first Ctrl-C are noted only. Outside the main thread nothing is noted."""
    requests = EndRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in END_SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
