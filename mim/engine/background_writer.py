"""BackgroundWriter: writes copies of a run's state to files, in a thread, while the run goes on."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from weakref import WeakSet

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mim.engine.host_copy import HostCopy
from mim.errors import message

LOG = logging.getLogger("mim")


class BackgroundWriter:
    """Writes one copy at a time. One thread does it, so that files appear in the order in which they were asked for.

    Python waits for the thread at its end, and before it forks: no other process gets a file that is half written.
    """

    def __init__(self) -> None:
        self._copy = HostCopy()
        self._content: dict = {}  # of the newest write
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future] = []  # that have not ended, or whose end nobody has looked at
        _WRITERS.add(self)

    def add(self, content: dict, write: Callable[[dict], object]) -> None:
        """Copies a state and begins to write it. Waits for the writes of another step before; raises their error."""
        self.check()
        if self._writes and self._content["step"] == content["step"]:  # no tensor has changed since
            self._content = _with_tensors_of(self._content, content)
        else:
            self.wait()
            self._content = self._copy.take(content)
        self._writes.append(self._executor.submit(write, self._content))

    def check(self) -> None:
        """Raises the error of a write that has ended with one."""
        while self._writes and self._writes[0].done():
            self._writes.pop(0).result()

    def wait(self) -> None:
        """Waits for all writes. Raises the error of the first that ends with one."""
        self.settle()
        self.check()

    def settle(self) -> None:
        """Waits for all writes, whatever comes of them."""
        wait(self._writes)

    def close(self, error: BaseException | None) -> None:
        """Waits for all writes and raises as `wait`. Beside `error`, which ends the run anyway, theirs are warnings."""
        self.settle()
        self._executor.shutdown()
        if error is None:
            self.check()
        for write in self._writes:
            if (reason := write.exception()) is not None:
                LOG.warning("a checkpoint was not written: %s", message(reason))
        self._writes = []


_WRITERS: WeakSet[BackgroundWriter] = WeakSet()


def _settle() -> None:
    for writer in list(_WRITERS):
        writer.settle()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(before=_settle)


def _with_tensors_of(copy: dict, content: dict) -> dict:
    """A content with the tensors of the copy of another that has the same ones."""
    tensors = iter([leaf for leaf in tree_leaves(copy) if isinstance(leaf, Tensor)])
    return tree_map(lambda leaf: next(tensors) if isinstance(leaf, Tensor) else deepcopy(leaf), content)
