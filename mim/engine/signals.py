"""Signals: a request to end is noted, and heeded between two steps; the same request again is obeyed at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Requests:
    """asked: the name of the signal that this process received, or empty."""

    def __init__(self) -> None:
        self.asked = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number).name


@contextmanager
def deaf() -> Iterator[None]:
    """Inside, SIGTERM is not heard; for what takes a few seconds and ends the process anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def requests_to_end() -> Iterator[Requests]:
    """Inside, SIGTERM, SIGUSR1 and Ctrl-C are requests; a second Ctrl-C ends the process as it would without this.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in ASKING}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
