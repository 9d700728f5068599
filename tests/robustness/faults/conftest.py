"""Tests of what interrupts a run, and the runs that nobody interrupts, which they are held against."""

import pytest
from interrupted import KEYS, finished


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, warm):
    """The undisturbed run."""
    return finished(warm, tmp_path_factory.mktemp("undisturbed") / "run", KEYS)


@pytest.fixture(scope="session")
def undisturbed_two(tmp_path_factory, warm):
    """The undisturbed run on two ranks."""
    return finished(warm, tmp_path_factory.mktemp("undisturbed") / "two", KEYS, ranks=2)
