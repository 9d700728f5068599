"""Once: what several sources list is listed once for all of them, such as a folder for both splits."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_results: ContextVar[dict[Hashable, Any] | None] = ContextVar("results", default=None)


@contextmanager
def listing_once() -> Iterator[None]:
    """Inside, `once` keeps its results."""
    token = _results.set({} if _results.get() is None else _results.get())
    try:
        yield
    finally:
        _results.reset(token)


def once(key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make`; inside `listing_once` it is made only the first time. key: what is listed."""
    results = _results.get()
    if results is None:
        return make()
    if key not in results:
        results[key] = make()
    return results[key]
