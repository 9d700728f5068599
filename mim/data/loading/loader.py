"""Batches of images in a given order, made in this process or by the workers of PyTorch's DataLoader."""

import atexit
import ctypes
import gc
import logging
import math
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mim.data.batch import Batch
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.sampler import SampleKey
from mim.data.sources.base import Source, quiet_decoders
from mim.errors import DataLost

LOG = logging.getLogger("mim")

AHEAD = 2  # batches that each worker prepares in advance
NAMED = 3  # samples of a batch that an error names
GONE_S = 30.0  # seconds in which a worker whose socket closed ends: its memory may be written to a core file first
GRACE_S = 2.0  # seconds in which a worker finishes its batch at the end, before it is killed
LONGEST = 55  # bytes in the path of the temporary folder: the path of a socket has 45 more, and systems allow about 100
SHORT = "/tmp"  # noqa: S108 - where that path is longer; what is made there is a folder of this user alone
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # a terminal sends them to all processes
HINTS = {
    "SIGKILL": "killed, perhaps because the machine had too little memory: lower DATA.workers or DATA.batch_size",
    "SIGBUS": "too little shared memory (/dev/shm; docker run --shm-size), or a mapped file that became shorter",
    "SIGSEGV": "a fault in a decoder or another library",
}

Keys = list[SampleKey]
Result = TypeVar("Result")


def batches(dataset: ImageDataset, order: Iterable[Keys], workers: int, pin_memory: bool = False) -> "Results[Batch]":
    """Batches in the given order. Each is a function of its keys alone, so the number of workers changes none.

    Raises DataLost where a worker dies or the images stay away.
    """
    return Results(dataset.batch, order, workers, dataset.source, pin_memory)


def in_order(indices: Sequence[int], size: int) -> Sequence[Keys]:
    """The samples of these indices in batches of that size, the last one smaller; their epoch is 0."""
    return _InOrder(indices, size)


class _InOrder(Sequence[Keys]):
    """Makes each batch where it is asked for: a list of all would be copied in memory once there are workers."""

    def __init__(self, indices: Sequence[int], size: int):
        self.indices, self.size = indices, size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.size)

    def __getitem__(self, number: Any) -> Any:
        start = range(0, len(self.indices), self.size)[number]
        return [(0, index) for index in self.indices[start : start + self.size]]


class Results(Iterator[Result], Generic[Result]):
    """make(keys) for each batch of samples, in order: the same with any number of workers.

    An error of `make` is raised here with its own type and text. Close it at the end.

    Args:
        make: a function that can be pickled.
        order: the samples of each batch.
        workers: processes; 0 makes each batch in this process.
        source: names the samples in an error, and knows which notes on its files were said.
        pin_memory: copy results to pinned memory by their method pin_memory.

    Raises DataLost where a worker dies, with the cause and the samples that it was reading.
    """

    def __init__(
        self, make: Callable[[Keys], Result], order: Iterable[Keys], workers: int, source: Source, pin_memory: bool
    ):
        self._source, self._owner = source, os.getpid()
        self._pending: deque[Keys] = deque()  # batches that were sent to the workers and did not come back
        self._received, self._outage_end = 0, 0.0
        self._processes: list[Any] = []
        self._folder = _socket_folder() if workers else None  # a worker that is killed cannot remove its sockets
        child_ended = getattr(signal, "SIGCHLD", None)  # none on Windows
        handler = signal.getsignal(child_ended) if child_ended is not None else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
            self._iterator: Iterator[Any] = iter(
                DataLoader(
                    _Maker(make, self._folder.name if self._folder else ""),
                    batch_size=None,  # each item of the order is a batch
                    sampler=_recorded(order, self._pending),
                    num_workers=workers,
                    pin_memory=pin_memory,
                    prefetch_factor=AHEAD if workers else None,
                    worker_init_fn=_start_worker,
                    # A forked worker starts in milliseconds and needs no copy of a long list of files. The threads of
                    # this process are no danger to it: it computes on one thread, never touches CUDA, and logs into a
                    # queue.
                    multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                    generator=torch.Generator(),  # else a seed is drawn from the global one
                )
            )
        if not workers:
            return
        if child_ended is not None and threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises an error wherever the main thread is; a dead worker is noticed in __next__
            signal.signal(child_ended, handler or signal.SIG_DFL)
        self._processes = self._iterator._workers  # type: ignore[attr-defined] # the only way to its exit codes
        self._kill = partial(_kill, self._processes, os.getpid())
        atexit.register(self._kill)  # before Python waits for them, where this is not closed

    def __next__(self) -> Result:
        try:
            answer = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            message = self._death(GONE_S if isinstance(error, OSError | EOFError) else 1)
            self.close()
            if not message:
                raise
            raise DataLost(message) from error
        self._pending.popleft()
        self._received += 1
        self._log(answer.records)
        if answer.error is not None:
            self.close()
            raise answer.error
        return answer.result

    def close(self) -> None:
        """Ends the workers. The results that were not read are lost."""
        if os.getpid() != self._owner:  # a copy in a worker
            return
        iterator, self._iterator = self._iterator, iter(())
        processes, self._processes = self._processes, []
        if processes:
            timer = threading.Timer(GRACE_S, self._kill)
            timer.start()
            iterator._shutdown_workers()  # type: ignore[attr-defined] # as it does itself when it is dropped
            timer.cancel()
            self._kill()
            atexit.unregister(self._kill)
            for process in processes:
                process.join(GRACE_S)  # a process that waits for a disk cannot be killed
        if self._folder is not None:
            self._folder.cleanup()

    def __del__(self) -> None:
        if hasattr(self, "_iterator") and sys is not None and not sys.is_finalizing():  # at the end, modules are gone
            self.close()

    def _death(self, timeout_s: float) -> str:
        """The message about a dead worker; empty where all are alive."""
        closed = wait([process.sentinel for process in self._processes], timeout_s if self._processes else 0)
        for number, process in enumerate(self._processes):
            if process.sentinel in closed:
                process.join()  # the system closes the files of a process before it has an exit code
                first = (number - self._received) % len(self._processes)  # batches go to the workers in turns
                batches = list(self._pending)[first :: len(self._processes)]
                names = [self._source.describe(index) for keys in batches for _, index in keys[:NAMED]]
                missing = self._source.missing()
                return (
                    f"dataloader worker {number} (process {process.pid}) {_cause(process.exitcode)}. It was reading "
                    f"{sum(map(len, batches))} images, such as {', '.join(names)}.{f' {missing}.' if missing else ''} "
                    "Start the same command again: a training run goes on from its last checkpoint"
                )
        return ""

    def _log(self, records: Sequence[logging.LogRecord]) -> None:
        """Logs what a worker logged; an outage of the storage and a note about a kind of files once for all workers."""
        for record in records:
            began, ended = getattr(record, "outage", (math.inf, 0.0))
            if began > self._outage_end and self._source.say.is_news(record):
                LOG.handle(record)
            self._outage_end = max(self._outage_end, ended)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What comes back for a batch: a result or an error, and what the worker logged meanwhile."""

    result: Any
    error: Exception | None = None
    records: Sequence[logging.LogRecord] = ()

    def pin_memory(self) -> "_Answer":
        return self if self.error is not None else replace(self, result=self.result.pin_memory())


class _Maker(Dataset[_Answer]):
    """The data set that DataLoader sees: its index is a batch of keys."""

    def __init__(self, make: Callable[[Keys], Any], folder: str):
        self.make, self.folder, self.parent = make, folder, os.getpid()
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        self.records: queue.SimpleQueue[logging.LogRecord]

    def __getitem__(self, keys: Keys) -> _Answer:
        if get_worker_info() is None:
            return _Answer(self.make(keys))
        result, error = None, None
        try:
            result = self.make(keys)
        except Exception as raised:
            error = _picklable(raised)
        return _Answer(result, error, [self.records.get() for _ in range(self.records.qsize())])


def _start_worker(number: int) -> None:
    """Prepares a worker. PyTorch has set its number of threads to one, and its seeds."""
    info = get_worker_info()
    assert info is not None
    maker: Any = info.dataset
    gc.freeze()  # its collections would write to, and so copy, all Python objects of the training process
    for name in IGNORED:
        if (ignored := getattr(signal, name, None)) is not None:
            signal.signal(ignored, signal.SIG_IGN)
    if maker.in_main_thread and os.getppid() == maker.parent:  # Linux also acts where only the thread ends
        with suppress(OSError, AttributeError, TypeError):  # macOS, Windows
            ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: it ends with its parent
    tempfile.tempdir = maker.folder
    maker.records = queue.SimpleQueue()
    LOG.handlers[:], LOG.propagate = [QueueHandler(maker.records)], False
    quiet_decoders()


def _recorded(order: Iterable[Keys], pending: deque[Keys]) -> Iterator[Keys]:
    for keys in order:
        pending.append(keys)
        yield keys


def _kill(processes: list[Any], owner: int) -> None:
    for process in processes:
        if os.getpid() == owner and process.is_alive():
            process.kill()


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note; a RuntimeError of the same text for a type that cannot be sent."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written a moment ago
    except Exception:  # a type of the user's may raise anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a dataloader worker:\n{text}")
    return error


def _socket_folder() -> tempfile.TemporaryDirectory:
    """A folder for the sockets over which workers hand over tensors."""
    too_long = os.name == "posix" and len(os.fsencode(tempfile.gettempdir())) > LONGEST
    folder = SHORT if too_long else None
    return tempfile.TemporaryDirectory(prefix="mim-", dir=folder, ignore_cleanup_errors=True)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    name = {int(number): number.name for number in signal.Signals}.get(-code, f"signal {-code}")
    return f"was ended by {name}" + (f" ({HINTS[name]})" if name in HINTS else "")
