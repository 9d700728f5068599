"""Log: the lines of a run, on the console and in its log file."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path

from rich import get_console

LOG = logging.getLogger("mim")


class ConsoleHandler(logging.Handler):
    """Prints log lines above the progress bar, where there is one; in a notebook as plain text of one output."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno == logging.WARNING else "red" if record.levelno > logging.WARNING else ""
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        if get_console().is_jupyter:
            print(prefix + record.getMessage())
            return
        get_console().print(prefix + record.getMessage(), markup=False, highlight=False, soft_wrap=True, style=style)


def log_to_console(main: bool) -> None:
    """Sends the log to the console on the main rank, and nowhere on the others."""
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    LOG.handlers[:] = [ConsoleHandler() if main else logging.NullHandler()]


class LogFile(logging.FileHandler):
    """Writes log lines to a file. Where it cannot write, it warns once on the console, and the run goes on."""

    warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.warned:
            self.warned = True
            get_console().print(f"warning: {self.baseFilename} cannot be written", markup=False, style="yellow")

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which handleError has reported
            super().close()


@contextmanager
def buffered_lines() -> Iterator[list[logging.LogRecord]]:
    """Inside, log lines are also collected, for a file that does not exist yet."""
    handler = BufferingHandler(sys.maxsize)
    LOG.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        LOG.removeHandler(handler)


@contextmanager
def log_to_file(path: Path, main: bool, before: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """On the main rank, adds `before` and then each log line to a file, with its time; at the end the error, if any.

    The caller must report that error on the console.
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
    """Logs what a run is about to do, a line each, and its warnings."""
    width = max(map(len, lines))
    for name, text in lines.items():
        LOG.info("  %-*s  %s", width, name, text)
    for warning in warnings:
        LOG.warning(warning)
