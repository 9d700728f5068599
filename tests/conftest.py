"""For all tests: counts that a test tells are printed at the end, whatever is captured and whichever process ran it."""

import gc
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

START = time.monotonic()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours


@pytest.fixture(scope="session")
def warm():
    """Starts training processes without the seconds of their imports."""
    from warm import Warm

    with Warm() as server:
        yield server


@pytest.fixture
def temporary(monkeypatch):
    """Where this process and its dataloader workers put temporary files: an empty folder with a path short enough for
    sockets.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def tell(record_property):
    """Prints a line of counts after the tests."""
    return lambda line: record_property("line of counts", line)


@pytest.fixture
def explore(record_property):
    """Tries a property on many cases of a strategy, whose number is printed after the tests."""
    from exploring import explore

    return lambda what, *cases: record_property(f"cases of {what}", explore(*cases))


def pytest_collection_finish():
    """The garbage collector no longer looks through what the imports made, where it has nothing to free."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    properties = [pair for report in reports for pair in report.user_properties]
    cases = {name.removeprefix("cases of "): count for name, count in properties if name.startswith("cases of ")}
    lines = [text for name, text in properties if name == "line of counts"]
    if cases:
        lines.append(f"{sum(cases.values()):,} cases tried: {', '.join(f'{cases[what]:,} {what}' for what in cases)}")
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_runtest_setup(item):
    """Skips what begins after MIM_TEST_MINUTES, so that a slow machine ends its run and says what it left out."""
    minutes = float(os.environ.get("MIM_TEST_MINUTES", "inf"))
    if time.monotonic() - START > 60 * minutes:
        pytest.skip(f"MIM_TEST_MINUTES: {minutes:g} minutes are over")
