"""Log: what a run says in lines, on the console and in log.txt."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path

from rich import get_console

LOG = logging.getLogger("mim")


class ConsoleHandler(logging.Handler):
    """Log lines on the console, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno == logging.WARNING else "red" if record.levelno > logging.WARNING else ""
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        get_console().print(prefix + record.getMessage(), markup=False, highlight=False, soft_wrap=True, style=style)


def log_to_console(main: bool) -> None:
    """Sends this toolkit's log to the console on the rank that writes, and nowhere on the others."""
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    LOG.handlers[:] = [ConsoleHandler() if main else logging.NullHandler()]


class LogFile(logging.FileHandler):
    """log.txt. Where it cannot be written, the console says so once and the run goes on to say the rest there."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            get_console().print(f"warning: {self.baseFilename} cannot be written", markup=False, style="yellow")

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which was told
            super().close()


@contextmanager
def held_lines() -> Iterator[list[logging.LogRecord]]:
    """Inside, lines of the log are kept, too, for a file that is yet to be made."""
    held = BufferingHandler(sys.maxsize)
    LOG.addHandler(held)
    try:
        yield held.buffer
    finally:
        LOG.removeHandler(held)


@contextmanager
def log_to_file(path: Path, main: bool, before: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """Adds every line of the log to a file, with its time, those before first, and last of all the error that ended
    the run.

    Whoever catches that error tells the console of it.
    """
    if not main:
        yield
        return
    file = LogFile(path)
    file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    for record in before:
        file.handle(record)
    LOG.addHandler(file)
    try:
        yield
    except BaseException as error:
        text = f"stopped: {type(error).__name__}: {error}"
        file.handle(logging.LogRecord(LOG.name, logging.ERROR, __file__, 0, text, None, None))
        raise
    finally:
        LOG.removeHandler(file)
        file.close()


def announce(lines: dict[str, str], warnings: list[str]) -> None:
    """What a run is about to do, a line each, and which of its settings have no effect."""
    width = max(map(len, lines))
    for name, text in lines.items():
        LOG.info("  %-*s  %s", width, name, text)
    for warning in warnings:
        LOG.warning(warning)
