"""Exploring: properties that hypothesis tries on many cases, the same ones in every run, and counts."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

Explore = Callable[[str, int, SearchStrategy, Callable[[Any], None]], None]  # the fixture of conftest.py
GROWTH = 1_000  # MiB that a process may grow by while cases are tried


def profile(quick: int, full: int) -> pytest.MarkDecorator:
    """As many cases in `make test`, and as many among the slow tests."""
    return pytest.mark.parametrize("cases", [quick, pytest.param(full, marks=pytest.mark.slow)])


def explore(cases: int, strategy: SearchStrategy, check: Callable[[Any], None]) -> int:
    """Tries a property on at least so many cases of a strategy, in memory that stays bounded; how many there were."""
    tried = 0

    @settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def one(case: Any) -> None:
        nonlocal tried
        tried += 1
        check(case)

    with bounded_memory():
        one()
    assert tried >= cases
    return tried


@contextmanager
def bounded_memory(most: int = GROWTH) -> Iterator[None]:
    """Fails where the largest size that this process ever had grew by more MiB than that inside."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < most, f"{grown} MiB more"
